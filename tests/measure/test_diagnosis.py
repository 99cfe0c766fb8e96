"""A diagnosis of the tiny world: three sabotaged set-ups are called by name, a good one good, and its cost is known before."""

import hashlib

import pytest
import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.scoring import CheckedReward
from flash_grpo.algorithm.types import Scores
from flash_grpo.measure.diagnosis import Diagnosis, batches, diagnosed
from flash_grpo.measure.halves import gradients_of_halves
from flash_grpo.measure.scored import scored
from flash_grpo.measure.spending import spending
from flash_grpo.measure.verdict import GOOD, IDENTICAL, NO_SPREAD, REWARD_NOISE, verdict

CHEAP = ("ablations=short_branches", "method.plan.last_step=8", "rollout.layout.num_prompts=4", "optim.anneal.to=1")


def _scores(total_B) -> Scores:
    return Scores(total_B=total_B, parts={"only": total_B})


def _constant(video_BFHWC, text):
    return _scores(torch.full((len(text),), 0.7))


class _Dice:
    """Scores that have nothing to do with the video, others each time."""

    calls = 0

    def __call__(self, video_BFHWC, text):
        self.calls += 1
        return _scores(keyed.normal((len(text),), "dice", self.calls))


def _hash(video_BFHWC, text):
    """Scores that have nothing to do with what is seen, the same each time."""
    digests = [hashlib.sha256(video.numpy().tobytes()).digest() for video in video_BFHWC]
    return _scores(torch.tensor([int.from_bytes(digest[:4], "little") / 2**32 for digest in digests]))


def _with_reward(small, reward) -> Diagnosis:
    small.rollouts.reward = CheckedReward(reward)
    return diagnosed(small, iterations=2, repeats=2)


def test_a_reward_without_spread_is_called_so(trainer):
    found = _with_reward(trainer(*CHEAP), _constant)
    assert verdict(found) == NO_SPREAD
    assert found.reward.without_spread == 1 and found.gradient.norm == 0 and found.video_distance > 1


@pytest.mark.parametrize("reward", [_Dice(), _hash], ids=["dice", "hash"])
def test_a_reward_of_pure_noise_is_called_so(trainer, reward):
    found = _with_reward(trainer(*CHEAP), reward)
    assert verdict(found) == REWARD_NOISE
    assert found.nudged_noise > 0.7 and (found.repeated_noise > 0.7) == (reward is not _hash)


def test_identical_siblings_are_called_so(trainer):
    found = diagnosed(trainer(*CHEAP, "schedule.noise_level=1e-5"), iterations=2, repeats=2)
    assert verdict(found) == IDENTICAL
    assert found.video_distance < 0.2


def test_a_good_set_up_is_called_good(trainer):
    small = trainer(*CHEAP, "rollout.layout.group_size=16")
    found = diagnosed(small, iterations=16, repeats=2)
    assert verdict(found) == GOOD
    assert found.repeated_noise == 0 and found.nudged_noise < 0.01
    assert found.shares["sde_noise"].mean == pytest.approx(1)  # siblings share all else
    assert found.weights.drift < 1e-5


def test_independent_initial_noise_makes_most_of_the_spread(trainer):
    found = diagnosed(trainer("rollout.layout.group_size=16"), iterations=2, repeats=2)
    assert found.shares["initial_noise"].mean > 0.8
    assert abs(found.shares["step"].mean) < 0.4


@pytest.mark.parametrize(
    "choice", ["method=flash", "method=full", "ablations=shared_noise", "ablations=awm", "short", "kl"]
)
def test_the_cost_that_is_said_before_is_what_is_spent(trainer, choice):
    chosen = {"short": CHEAP, "kl": ("method.kl_weight=0.1", "model.guidance=2.0")}.get(choice, (choice,))
    small = trainer(*chosen)
    said = spending(small, 2, 2)
    diagnosed(small, 2, 2)
    small.meter.settle()
    spent = small.meter.cost
    assert said.forwards == spent.forward_evaluations and said.backwards == spent.backward_evaluations
    assert said.videos == spent.decodes and said.scored == spent.scored_videos
    assert said.pflop == pytest.approx(spent.pflop)


def test_the_mean_of_the_halves_is_the_gradient_of_an_update(trainer):
    small = trainer("rollout.layout.num_prompts=4")
    before = {name: value.detach().clone() for name, value in small.policy.trainable().items()}
    first, second = gradients_of_halves(small, scored(small, small.batch(1), again=False))[0]
    assert all(torch.equal(before[name], value) for name, value in small.policy.trainable().items())
    assert float(((first + second) / 2).norm()) == pytest.approx(small.iterate(1).gradient_norm, rel=1e-4)


def test_the_second_draw_has_the_same_prompts_and_other_noise(trainer):
    small = trainer()
    first, *_, again = batches(small, 2)[:3]
    assert first.text == again.text and first.iteration != again.iteration
    assert first.text == small.batch(1).text
    assert not torch.equal(scored(small, first, False).reward_PG, scored(small, again, False).reward_PG)
