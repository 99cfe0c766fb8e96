"""Turn rewards into advantages. Rewards stand in a matrix [P, G]: prompts by siblings, of all ranks."""

import math

import torch

from flash_grpo.algorithm import ranges

STDS = ("batch", "group", "none")


def group_relative(
    reward_PG: torch.Tensor, std: str = "batch", epsilon: float = 1e-4, clip: float | None = 5.0
) -> torch.Tensor:
    """Return (r - mean of the prompt) / (std + epsilon), clipped to ±clip: [P, G].

    std: population std over "batch" (all rewards: release) or over each "group" (Flow-GRPO, GRPO), or "none" (Dr. GRPO).
    clip: None is none.
    """
    ranges.one_of("method.advantage.std", std, STDS)
    ranges.number("method.advantage.epsilon", epsilon, above=0)
    ranges.number("method.advantage.clip", clip, above=0, null=True)
    centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    if std == "batch":
        scale = reward_PG.std(correction=0) + epsilon
    elif std == "group":
        scale = reward_PG.std(1, correction=0, keepdim=True) + epsilon
    else:
        scale = torch.ones(())
    advantage_PG = centred_PG / scale
    return advantage_PG if clip is None else advantage_PG.clamp(-clip, clip)


def largest(advantage_PG: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return which rollouts of each group have the largest |advantage|, `trained_siblings` of them: bool [P, G].

    Of equal ones the first sibling is taken, so every rank chooses alike.
    """
    order_PG = advantage_PG.abs().argsort(dim=1, descending=True, stable=True)
    chosen_PK = order_PG[:, : trained_siblings(fraction, advantage_PG.shape[1])]
    return torch.zeros_like(advantage_PG, dtype=torch.bool).scatter_(1, chosen_PK, True)


def trained_siblings(fraction: float, group_size: int) -> int:
    """Return how many rollouts of a group are trained: the fraction rounded up, and at least 2.

    A single one would only ever be pushed or only be pulled, and its group's mean, which its advantage is measured from, would
    count for nothing.
    """
    return min(group_size, max(2, math.ceil(round(fraction * group_size, 9))))
