"""Say how much a trained transition counts, by its step: the methods' second half. A weighting is `schedule -> weight_T`."""

import warnings

import torch

from flash_grpo.algorithm.sde import first_rectification_term, rectification_factor
from flash_grpo.algorithm.types import FlowSchedule


def uniform(schedule: FlowSchedule) -> torch.Tensor:
    return torch.ones(len(schedule))


def inverse_lambda(schedule: FlowSchedule) -> torch.Tensor:
    """Return 1/λ: temporal gradient rectification (paper)."""
    return 1 / rectification_factor(schedule)


def inverse_first_term(schedule: FlowSchedule) -> torch.Tensor:
    """Return one over λ's first term, s/sqrt(-dt): LongCat-Video's weight, and what GRPO-Guard's is before any update."""
    return 1 / first_rectification_term(schedule)


def proportional_to_interval(schedule: FlowSchedule) -> torch.Tensor:
    """Return |dt|/λ, with which a step counts as much as it moves the latents (PCPO, arXiv 2509.25774, Proposition 2)."""
    return -schedule.dt_T / rectification_factor(schedule)


def noise_std(schedule: FlowSchedule) -> torch.Tensor:
    """Return the std of the step's noise, s·sqrt(-dt): a step counts as much as it explores (TempFlow-GRPO, 2508.04324)."""
    return schedule.noise_std_T


OF_THE_SDE = (inverse_lambda, inverse_first_term, proportional_to_interval, noise_std)
"""Weights that are of the SDE's step; a target without a stochastic step has no such factor."""


def rescaled_to_mean_one(weight_N: torch.Tensor, mean: float, varies: bool) -> torch.Tensor:
    """Return weight_N / mean, with `mean` over *all* transitions of the optimizer update, of all ranks.

    A mean over less than the update, one step for instance, would make every weight 1 and rectification would silently
    vanish. Where the update really holds one step only, this warns. `varies`: whether the weighting varies over the schedule.
    """
    scaled_N = weight_N / mean
    if varies and len(scaled_N) and torch.allclose(scaled_N, torch.ones_like(scaled_N), atol=1e-6):
        warnings.warn("all transitions of this update are at one step: rectification has no effect on it", stacklevel=2)
    return scaled_N
