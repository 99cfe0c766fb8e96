"""How large a batch and how many iterations are needed."""

import math

import pytest
import torch

from flash_grpo.measure.gradient_noise import GradientNoise
from flash_grpo.measure.needed import SIZES, iterations_until_visible, sizes
from flash_grpo.measure.reward_spread import RewardSpread

REWARD = RewardSpread(mean=1.0, std=1.0, quantiles=(0.0,) * 5, within=0.8, between=0.2, without_spread=0.0)


def test_after_that_many_iterations_four_of_five_runs_show_the_gain():
    """Simulate training rewards that rise by the gain, and fit lines to them."""
    count, gain = iterations_until_visible(REWARD, 0.5, 4, 8), 0.5
    draw = torch.Generator().manual_seed(0)
    reward_RI = torch.linspace(0, gain, count) + (0.3 / 4) ** 0.5 * torch.randn(4000, count, generator=draw)
    time_I = torch.linspace(-0.5, 0.5, count)
    slope_R = reward_RI @ time_I / time_I.square().sum()
    error = (0.3 / 4) ** 0.5 / time_I.square().sum() ** 0.5
    assert (
        0.78 < float((slope_R / error > 1.96).double().mean()) < 0.86
    )  # whole iterations are a little more than needed


def test_more_prompts_and_larger_gains_need_fewer_iterations():
    assert iterations_until_visible(REWARD, 0.1, 8, 8) == pytest.approx(
        iterations_until_visible(REWARD, 0.1, 4, 8) / 2, abs=1
    )
    assert iterations_until_visible(REWARD, 0.1, 4, 8) == pytest.approx(
        4 * iterations_until_visible(REWARD, 0.2, 4, 8), abs=4
    )
    assert iterations_until_visible(REWARD, 9.0, 4000, 8) == 3


def test_there_is_a_size_for_each_number_of_siblings():
    gradient = GradientNoise(signal=0.1, of_prompts=0.5, of_rollouts=6.0, num_prompts=4, group_size=8)  # no error
    found = sizes(gradient, REWARD, 0.5)
    assert tuple(size.group_size for size in found) == SIZES
    assert [size.num_prompts for size in found] == sorted((size.num_prompts for size in found), reverse=True)
    assert found[1].num_prompts == 65 and found[1].rollouts == 65 * 8 and not found[1].at_least
    assert gradient.ratio_at(8) * 65 / 4 == pytest.approx(1)


def test_a_signal_that_is_not_resolved_gives_a_lower_bound():
    gradient = GradientNoise(
        signal=-0.1, of_prompts=0.5, of_rollouts=6.0, num_prompts=4, group_size=8, signal_error=0.05
    )
    found = sizes(gradient, REWARD, 0.5)
    assert found[1].num_prompts == 65 and all(size.at_least for size in found)


def test_without_a_gradient_no_size_suffices():
    gradient = GradientNoise(signal=0.0, of_prompts=0.0, of_rollouts=0.0, num_prompts=4, group_size=8)
    assert all(math.isinf(size.num_prompts) and math.isnan(size.iterations) for size in sizes(gradient, REWARD, 0.5))
