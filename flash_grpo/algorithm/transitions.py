"""Join trained steps of several parts, make them of a mask, or give each the value of its state."""

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


def gathered(value_S: torch.Tensor, state_N: torch.Tensor) -> torch.Tensor:
    """Return value_S[state_N]: value_S itself, not a copy, where each state is named once and in order. state_N: on the CPU."""
    if len(state_N) == len(value_S) and torch.equal(state_N, torch.arange(len(state_N))):
        return value_S
    return value_S[state_N.to(value_S.device)]


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
