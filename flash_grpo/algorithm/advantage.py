"""Turn rewards into advantages. Rewards stand in a matrix [P, G]: prompts by siblings, of all ranks."""

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
