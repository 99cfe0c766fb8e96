"""The sweeps and recipes of the real models compose, fit their ranks and make their plans, without any weights."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from flash_grpo.algorithm.batches import Layout
from flash_grpo.recompose import composed_outside
from flash_grpo.run.build import ConfigError, build, planned, tiny_sizes
from flash_grpo.run.compose import CONF
from flash_grpo.run.trained_experts import with_trained_experts

# each on one node, or on twelve
SWEEPS = [(name, nodes * 8) for name in ("table1_1p3b", "fig4", "fig5", "ablation_1p3b") for nodes in (1, 12)]
SWEEPS += [("table1_14b", 96)]
ROOT = Path(__file__).resolve().parents[2]


def _composed(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(("sweep", "world_size"), SWEEPS)
def test_a_sweep_composes_and_plans(sweep, world_size, capsys):
    swept = OmegaConf.load(ROOT / "sweeps" / f"{sweep}.yaml").hydra.sweeper.params
    for ablation in swept.ablations.split(","):
        cfg = _composed(f"sweeps={sweep}", f"ablations={ablation}", "prompts.train=a", "prompts.test=b")
        assert cfg.study == sweep and cfg.budget.device_hours == 350 and cfg.budget.pflop is None
        method, schedule = instantiate(cfg.method), instantiate(cfg.schedule)
        method.plan.candidates(len(schedule))
        layout = Layout(**cfg.rollout.layout, optimizer_steps=cfg.training.optimizer_steps, world_size=world_size)
        assert layout.per_step == 192
        batch = layout.batch(1, ["text"] * layout.num_prompts, rank=0)
        mask_BT = method.plan(batch, len(schedule), cfg.seed)
        print(sweep, ablation, method.name, mask_BT.sum(0).tolist())
        assert mask_BT.shape == (2 * 192 // world_size, 12 if sweep == "table1_14b" else 20)
        assert mask_BT.any(1).all()
        assert not tiny_sizes(cfg)
        assert cfg.optim.lora.rank == 16 and cfg.optim.optimizer.lr == 1e-4
        assert instantiate(cfg.evaluation.sampler.schedule).dt_T.shape == (50,)
    assert sweep in capsys.readouterr().out


@pytest.mark.parametrize(
    "reward", ["hpsv3", "pickscore", "aesthetic", "videoalign", "composite", "remote", "brightness"]
)
def test_every_reward_composes_or_says_what_is_missing(reward):
    cfg = composed_outside([f"reward={reward}"])
    if reward in ("remote", "brightness"):
        assert callable(build(cfg.reward, "reward"))
    else:
        with pytest.raises(ConfigError, match=r"pinned revision|hf download|must be given") as caught:
            build(cfg.reward, "reward")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("sweep", "boundary"), [("wan22_a14b", 12), ("wan22_5b", None)])
def test_a_first_comparison_on_wan22_composes_and_plans(sweep, boundary):
    """boundary: the last step of high noise."""
    swept = OmegaConf.load(ROOT / "sweeps" / f"{sweep}.yaml").hydra.sweeper.params
    for ablation in swept.ablations.split(","):
        cfg = _composed(f"sweeps={sweep}", f"ablations={ablation}", "prompts.train=a", "prompts.test=b", "run_name=x")
        schedule, method, _, layout = planned_without_texts(cfg)
        assert cfg.study == sweep and cfg.budget.device_hours == 350 and not tiny_sizes(cfg)
        assert cfg.evaluation.sampler.schedule.shift == cfg.schedule.shift
        assert layout.world_size == 8
        node = with_trained_experts(cfg.model, method, schedule)
        if boundary is None:
            assert node is cfg.model
        else:
            assert schedule.timestep_T[boundary] >= 875 > schedule.timestep_T[boundary + 1]
            both = ["transformer", "transformer_2"]
            assert list(node.experts) == (both if ablation == "short_branches" else both[:1])


def planned_without_texts(cfg):
    cfg.prompts = _composed("run_name=x").prompts
    cfg.reward = _composed("run_name=x", "reward=brightness").reward
    return planned(cfg, 8)


@pytest.mark.parametrize(
    ("model", "latent", "parameters", "tflop", "lora"),
    [
        ("wan22_a14b", (16, 21, 60, 104), 14_288_491_584, 1678.4, 52_428_800),
        ("wan22_5b", (48, 31, 44, 80), 4_999_787_712, 520.7, 23_592_960),
    ],
)
def test_wan22_has_its_real_sizes_on_the_meta_device(model, latent, parameters, tflop, lora):
    cfg = _composed(f"model={model}", "optim=lora", "run_name=x")
    node = OmegaConf.merge(cfg.model, {"weights": "random", "embedding_cache": None, "gradient_checkpointing": False})
    policy = build(node, "model", device=torch.device("meta"), lora=cfg.optim.lora)
    assert policy.latent_shape == latent
    for transformer in policy.transformers.values():
        frozen = [value.numel() for value in transformer.parameters() if not value.requires_grad]
        assert sum(frozen) == parameters
    trained = sum(value.numel() for value in policy.trainable().values())
    assert trained == lora * len(policy.experts)
    assert policy.flops.forward / 1e12 == pytest.approx(tflop, rel=0.015)  # and the adapters'
