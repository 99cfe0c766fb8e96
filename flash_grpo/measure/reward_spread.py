"""Describe rewards of the base model: their distribution, how they vary within and between groups, and how much is noise."""

from dataclasses import dataclass

import torch

from flash_grpo.algorithm import keyed

LEVELS = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class RewardSpread:
    """The distribution of a reward over groups."""

    mean: float
    std: float
    """Over all rollouts."""

    quantiles: tuple[float, ...]
    """At LEVELS: smallest, 10 %, median, 90 %, largest."""

    within: float
    """Variance within groups, unbiased."""

    between: float
    """Variance of the groups' expected rewards, unbiased, at least 0: what a prompt and what its rollouts share add."""

    without_spread: float
    """Share of groups whose rollouts all have the same reward; they train nothing."""


def reward_spread(reward_QG: torch.Tensor) -> RewardSpread:
    """Describe rewards [Q, G] of Q groups of G rollouts, Q and G at least 2."""
    reward_QG = reward_QG.double()
    within_Q, group_size = reward_QG.var(1), reward_QG.shape[1]
    within = float(within_Q.mean())
    return RewardSpread(
        mean=float(reward_QG.mean()),
        std=float(reward_QG.std()),
        quantiles=tuple(reward_QG.flatten().quantile(torch.tensor(LEVELS, dtype=torch.float64)).tolist()),
        within=within,
        between=max(float(reward_QG.mean(1).var()) - within / group_size, 0.0),
        without_spread=float((within_Q == 0).double().mean()),
    )


def noise_share(first_QG: torch.Tensor, second_QG: torch.Tensor) -> float:
    """Return the share of the variance within groups that is noise, from two scorings of the same videos: in [0, 1].

    Half the mean squared difference estimates the noise's variance. 0 where the groups have no variance at all.
    """
    first_QG, second_QG = first_QG.double(), second_QG.double()
    within = float((first_QG.var(1).mean() + second_QG.var(1).mean()) / 2)
    difference_QG = first_QG - second_QG
    noise = float((difference_QG - difference_QG.mean(1, keepdim=True)).square().sum(1).mean())
    return min(noise / (2 * (first_QG.shape[1] - 1)) / within, 1.0) if within > 0 else 0.0


def video_distance(video_GFHWC: torch.Tensor) -> float:
    """Return the root mean square distance of two of the videos, in grey levels (of 255), uint8 [G, F, H, W, 3]."""
    size = len(video_GFHWC)
    mean = sum(video.float() for video in video_GFHWC) / size
    square = sum(float((video.float() - mean).square().mean()) for video in video_GFHWC)
    return float((2 * square / (size - 1)) ** 0.5)


def nudged(video_BFHWC: torch.Tensor, *key: int | str) -> torch.Tensor:
    """Return the uint8 videos with each pixel moved by -1, 0 or 1 grey levels, drawn by key: nobody can see it."""
    step = keyed.generator(*key).integers(-1, 2, size=tuple(video_BFHWC.shape), dtype="int8")
    return (video_BFHWC.short() + torch.from_numpy(step)).clamp(0, 255).to(torch.uint8)
