"""Name the random draws of a batch's rollouts. What draws are keyed by decides what siblings share."""

import math
from dataclasses import dataclass

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.types import PromptBatch

Key = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class NoiseKeys:
    """The keys of B rollouts' noise, see `keyed`. Rollouts whose keys so far are equal are in one state."""

    initial_B: tuple[Key, ...]
    """Of x_T. Equal keys stand for equal texts: a key names its prompt."""

    sde_B: tuple[Key, ...] = ()
    """Of the SDE steps' noise; the step's index is appended. Empty where no step is stochastic."""

    centre_B: tuple[Key, ...] = ()
    """Of what siblings' x_T lie around, see `initial_state`; empty where they are independent or equal."""

    radius: float = 1.0


def initial_state(shape: tuple[int, ...], keys: NoiseKeys, row: int) -> torch.Tensor:
    """Draw x_T of one rollout: sqrt(1 - radius²)·centre + radius·own noise, again standard normal (Neighbor GRPO)."""
    own = keyed.normal(shape, *keys.initial_B[row])
    if not keys.centre_B:
        return own
    return math.sqrt(1 - keys.radius**2) * keyed.normal(shape, *keys.centre_B[row]) + keys.radius * own


def noise_keys(batch: PromptBatch, seed: int, initial: str | float, sde_seed: int | None = None) -> NoiseKeys:
    """Return the training rollouts' keys.

    initial: "independent" draws x_T for each rollout, "shared" once for each prompt, a number in a neighbourhood of that
    radius, between the two. sde_seed: for the SDE's noise alone, None takes `seed`.
    """
    rows = list(zip(batch.prompt_B.tolist(), batch.sibling_B.tolist(), strict=True))
    of_prompt_B = [(seed, "initial", batch.iteration, prompt) for prompt, _ in rows]
    of_rollout_B = [(*key, sibling) for key, (_, sibling) in zip(of_prompt_B, rows, strict=True)]
    sde = seed if sde_seed is None else sde_seed
    return NoiseKeys(
        initial_B=tuple(of_prompt_B if initial == "shared" else of_rollout_B),
        sde_B=tuple((sde, "sde", batch.iteration, prompt, sibling) for prompt, sibling in rows),
        centre_B=() if isinstance(initial, str) else tuple(of_prompt_B),
        radius=1.0 if isinstance(initial, str) else initial,
    )
