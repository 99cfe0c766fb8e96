"""What the sentences say of made-up numbers."""

import math
from dataclasses import replace

import pytest

from flash_grpo.measure.diagnosis import Diagnosis, Share
from flash_grpo.measure.gradient_noise import GradientNoise
from flash_grpo.measure.halves import Weights
from flash_grpo.measure.reward_spread import RewardSpread
from flash_grpo.measure.verdict import (
    GOOD,
    GRADIENT_NOISE,
    IDENTICAL,
    NO_SPREAD,
    REWARD_NOISE,
    Asked,
    sentences,
    signal_per_forwards,
    verdict,
)

GRADIENT = GradientNoise(
    signal=0.5, of_prompts=4.0, of_rollouts=16.0, num_prompts=4, group_size=8, signal_error=0.1, ratio_error=0.02
)
FOUND = Diagnosis(
    reward=RewardSpread(
        mean=2.0, std=0.6, quantiles=(0.0, 1.0, 2.0, 3.0, 4.0), within=0.3, between=0.06, without_spread=0.0
    ),
    video_distance=20.0,
    repeated_noise=0.0,
    nudged_noise=0.0,
    shares={source: Share(mean=0.3, error=0.05) for source in ("step", "initial_noise", "sde_noise")},
    gradient=GRADIENT,
    weights=Weights(smallest=0.7, largest=1.4, effective=0.95, advantage=0.8, drift=0.0, clipped=0.0),
)
ASKED = Asked(
    initial_noise="independent",
    stochastic=True,
    ratio_clip=1e-3,
    max_gradient_norm=math.inf,
    iteration_forwards=500,
    gain=0.5,
)


def _reward(**changed):
    return replace(FOUND, reward=replace(FOUND.reward, **changed))


def _weights(**changed):
    return replace(FOUND, weights=replace(FOUND.weights, **changed))


NAMED = {
    IDENTICAL: replace(FOUND, video_distance=0.3),
    NO_SPREAD: _reward(without_spread=0.9),
    REWARD_NOISE: replace(FOUND, repeated_noise=0.8),
    GRADIENT_NOISE: replace(FOUND, gradient=replace(GRADIENT, signal_error=0.3)),
    GOOD: FOUND,
}


@pytest.mark.parametrize("name", NAMED)
def test_each_cause_has_its_name_and_its_first_sentence(name):
    first = sentences(NAMED[name], ASKED)[0]
    assert verdict(NAMED[name]) == name
    assert first.startswith("Good" if name == GOOD else "Flat")


def test_a_cause_that_makes_the_others_meaningless_comes_first():
    nothing = replace(NAMED[NO_SPREAD], video_distance=0.0, repeated_noise=1.0)
    assert verdict(nothing) == IDENTICAL
    assert verdict(replace(nothing, video_distance=9.0)) == NO_SPREAD
    assert verdict(replace(FOUND, nudged_noise=1.0)) == REWARD_NOISE
    assert verdict(_reward(mean=1e6, within=1.0)) == NO_SPREAD  # the std is a rounding of the reward


def test_a_good_one_is_told_where_more_rollouts_stop_paying():
    text = " ".join(sentences(FOUND, ASKED))
    assert "0.1 of its noise (0.2 for 1,000 forwards)" in text
    assert signal_per_forwards(FOUND, ASKED) == pytest.approx(0.2)
    assert "half signal at 40 prompts x 8 siblings, or over 10 iterations" in text
    assert "a gain of 0.5 of the base reward's std (0.3)" in text
    assert "Try" not in text and "try" not in text


def test_a_signal_that_was_not_found_is_bounded():
    first = sentences(NAMED[GRADIENT_NOISE], ASKED)[0]
    assert "at most 0.22 of its noise" in first and "19 prompts x 8 siblings or more, or over 5 iterations" in first


CHANGES = {
    "method.initial_noise=shared": replace(FOUND, shares=FOUND.shares | {"initial_noise": Share(mean=0.9, error=0.02)}),
    "rollout.layout.num_prompts=40": replace(FOUND, gradient=replace(GRADIENT, num_prompts=96)),
    "method.ratio_clip=0.001": _weights(clipped=0.2, drift=2e-3),
    "method.weigh._target_": _weights(effective=0.2, largest=9.0),
    "reward=composite": replace(FOUND, repeated_noise=0.2),
    "rollout.layout.group_size": _reward(without_spread=0.2),
    "schedule.noise_level": NAMED[IDENTICAL],
    "reward=...": NAMED[NO_SPREAD],
    "more prompts": NAMED[GRADIENT_NOISE],
}


@pytest.mark.parametrize("setting", CHANGES)
def test_what_was_found_decides_about_the_setting_to_try(setting):
    assert setting in " ".join(sentences(CHANGES[setting], ASKED))
    assert setting not in " ".join(sentences(FOUND, ASKED))


def test_what_cannot_be_set_is_not_proposed():
    noisy = CHANGES["method.initial_noise=shared"]
    for other in (replace(ASKED, initial_noise="shared"), replace(ASKED, stochastic=False)):
        assert "initial_noise=shared" not in " ".join(sentences(noisy, other))
    assert "max_gradient_norm=1:" in " ".join(sentences(FOUND, replace(ASKED, max_gradient_norm=1.0)))


def test_numbers_that_do_not_exist_are_said_in_words():
    nothing = replace(GRADIENT, signal=0.0, of_prompts=0.0, of_rollouts=0.0, signal_error=0.0, ratio_error=0.0)
    silent = replace(_reward(std=0.0, within=0.0, without_spread=1.0), gradient=nothing)
    assert "nan" not in " ".join(sentences(silent, ASKED))
    bounded = replace(FOUND, gradient=replace(GRADIENT, signal=-0.1, signal_error=0.0))
    assert "infinitely many" in sentences(bounded, ASKED)[0]
