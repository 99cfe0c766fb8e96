"""Turn rewards into advantages. Rewards stand in a matrix [P, G]: prompts by siblings, of all ranks."""

import torch

STDS = ("batch", "group", "none")


def group_relative(
    reward_PG: torch.Tensor, std: str = "batch", epsilon: float = 1e-4, clip: float | None = 5.0
) -> torch.Tensor:
    """Return (r - mean of the prompt) / (std + epsilon), clipped to ±clip: [P, G].

    std: population std over "batch" (all rewards: release) or over each "group" (Flow-GRPO, GRPO), or "none" (Dr. GRPO).
    """
    centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    if std == "batch":
        scale = reward_PG.std(correction=0) + epsilon
    elif std == "group":
        scale = reward_PG.std(1, correction=0, keepdim=True) + epsilon
    elif std == "none":
        scale = torch.ones(())
    else:
        raise ValueError(f"method.advantage.std={std}: allowed are {', '.join(STDS)}")
    advantage_PG = centred_PG / scale
    return advantage_PG if clip is None else advantage_PG.clamp(-clip, clip)
