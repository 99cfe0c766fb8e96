"""Join trained steps of several parts, or make them of a mask."""

from dataclasses import replace

import torch

from flash_grpo.algorithm.types import Transitions


def joined(parts: tuple[Transitions, ...] | list[Transitions], like: torch.Tensor) -> Transitions:
    """Return the parts' transitions in one; `like` gives an empty one its latent shape."""
    shifted, states = list[Transitions](), 0
    for part in filter(len, parts):
        shifted.append(replace(part, state_N=part.state_N + states))
        states += len(part.x_SCFHW)
    if not shifted:
        return all_of(torch.zeros(0, 0, dtype=torch.bool), like[:0])
    return Transitions(**{name: torch.cat([getattr(part, name) for part in shifted]) for name in vars(shifted[0])})


def all_of(mask_BT: torch.Tensor, x_BCFHW: torch.Tensor) -> Transitions:
    """Return the masked steps of all rollouts, by step and then by row, each from a state of its own: the rollout's x."""
    step_N, rollout_N = mask_BT.T.nonzero().unbind(1)
    return Transitions(
        rollout_N=rollout_N,
        step_N=step_N,
        state_N=torch.arange(len(step_N)),
        x_SCFHW=x_BCFHW[rollout_N],
        x_next_NCFHW=x_BCFHW.new_empty(len(step_N), 0),
        logp_old_N=x_BCFHW.new_zeros(len(step_N)),
    )
