"""That the scenes world is learnt, and its planted flaw exploited: runs of the shipped sizes, only shorter."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flash_grpo.records.files import read_records
from flash_grpo.run import build, loop
from flash_grpo.run.compose import CONF
from flash_grpo.scenes_world.clips import captions

SHORT = ("ablations=shared_noise", "optim.optimizer.lr=3e-4", "budget.iterations=12", "evaluation.every=1")
COMPOSITE = {"_target_": "flash_grpo.rewards.composite.CompositeReward", "_convert_": "all"}


def composed(*overrides: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", ["recipe=scenes", "run_name=learns", *overrides])


def test_the_recipe_is_the_three_options_with_a_budget_and_an_evaluation():
    recipe = composed()
    by_hand = composed("recipe=tiny", "model=scenes", "prompts=scenes", "reward=scenes")
    assert all(recipe[group] == by_hand[group] for group in ("model", "prompts", "reward"))
    assert recipe.budget.iterations == 150
    prompts = build.planned(recipe, 1)[2]
    assert prompts.test == tuple(captions(held_out=True))


def evaluations(cfg) -> list[dict]:
    return [record for record in read_records(loop.run(cfg, "learns")) if record["kind"] == "evaluation"]


@pytest.mark.slow
def test_a_run_learns_on_captions_that_it_never_saw(tmp_path):
    """A fast recipe, so that the test is short: Flash-GRPO itself takes 150 iterations."""
    first, *_, last = evaluations(composed(*SHORT, f"runs_root={tmp_path}"))
    assert list(first["prompt_rewards"]) == captions(held_out=True)
    gains = torch.tensor([last["prompt_rewards"][text] - reward for text, reward in first["prompt_rewards"].items()])
    assert gains.mean() - 1.96 * gains.std() / len(gains) ** 0.5 > 0


@pytest.mark.slow
def test_a_run_exploits_the_planted_flaw_and_the_held_out_reward_falls(tmp_path):
    cfg = composed(*SHORT, "evaluation.held_out=null", f"runs_root={tmp_path}")  # it is a part of the reward here
    watched = {"flawed": "FlawedScenesReward", "honest": "ScenesReward"}
    rewards = {name: {"_target_": f"flash_grpo.scenes_world.reward.{kind}"} for name, kind in watched.items()}
    rewards["held_out"] = {"_target_": "flash_grpo.scenes_world.held_out.HeldOutScenesReward"}
    weights = {"flawed": 1.0, "honest": 0.0, "held_out": 0.0}
    OmegaConf.update(cfg, "reward", {**COMPOSITE, "rewards": rewards, "weights": weights}, merge=False, force_add=True)
    first, *_, last = (evaluation["reward_parts"] for evaluation in evaluations(cfg))
    assert last["flawed"] > first["flawed"] + 0.2
    assert last["honest"] > first["honest"]  # it does not tell
    assert last["held_out"] < first["held_out"] - 0.1
    assert last["size"] < first["size"] - 0.1
