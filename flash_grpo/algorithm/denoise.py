"""Denoising that obeys a mask: stochastic where it says so, deterministic elsewhere."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.sde import log_prob, ode_step, sde_mean, sde_noise_std
from flash_grpo.algorithm.types import FlowSchedule, PromptBatch, Rollouts, Transitions

SdeNoise = Callable[[int, torch.Tensor], torch.Tensor]


class DivergedError(RuntimeError):
    """The policy makes no videos any more. Its decoder would hide it: what is not a number becomes a black pixel."""


def initial_noise(batch: PromptBatch, shape: tuple[int, ...], seed: int, mode: str) -> torch.Tensor:
    """x_T [B, C, F, H, W]: mode "independent" draws one per rollout, "shared" one per prompt."""

    def key(prompt: int, sibling: int) -> tuple[int | str, ...]:
        own = (seed, "initial", batch.iteration, prompt)
        return own if mode == "shared" else (*own, sibling)

    pairs = zip(batch.prompt_B.tolist(), batch.sibling_B.tolist(), strict=True)
    return torch.stack([keyed.normal(shape, *key(*pair)) for pair in pairs])


def sde_noise(batch: PromptBatch, shape: tuple[int, ...], seed: int) -> SdeNoise:
    """`noise(step, rows)`: each rollout's own noise of that step, [len(rows), C, F, H, W]."""

    def noise(step: int, rows: torch.Tensor) -> torch.Tensor:
        pairs = zip(batch.prompt_B[rows].tolist(), batch.sibling_B[rows].tolist(), strict=True)
        return torch.stack([keyed.normal(shape, seed, "sde", batch.iteration, *pair, step) for pair in pairs])

    return noise


@torch.no_grad()
def denoise(
    policy: Policy,
    condition_BMD: torch.Tensor,
    noise_BCFHW: torch.Tensor,
    schedule: FlowSchedule,
    sde_mask_BT: torch.Tensor,
    sde_noise: SdeNoise,
    before_each_step: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, Transitions]:
    """From noise to latents, and the transitions that the mask made stochastic, ordered by step, then by row.

    before_each_step: may raise to give the whole thing up. DivergedError where the latents are not finite.
    """
    x, kept = noise_BCFHW, []
    for step, timestep in enumerate(schedule.timestep_T):
        before_each_step()
        v = policy.velocity(x, timestep.expand(len(x)), condition_BMD)
        x_next = ode_step(x, v, schedule.dt_T[step])
        rows = sde_mask_BT[:, step].nonzero().flatten()
        if len(rows):
            taken = _stochastic(x[rows], v[rows], schedule, step, rows, sde_noise(step, rows).to(x))
            x_next[rows] = taken.x_next_NCFHW
            kept.append(taken)
        x = x_next
    if not x.isfinite().all():
        raise DivergedError("the policy has diverged: latents are not finite; lower optim.optimizer.lr")
    return x, joined(kept, x)


def _stochastic(
    x: torch.Tensor, v: torch.Tensor, schedule: FlowSchedule, step: int, rows: torch.Tensor, noise: torch.Tensor
) -> Transitions:
    sigma, std, dt = schedule.sigma_S[step], schedule.std_T[step], schedule.dt_T[step]
    mean = sde_mean(x, v, sigma, std, dt)
    x_next = mean + sde_noise_std(std, dt) * noise
    return Transitions(
        rollout_N=rows,
        step_N=torch.full_like(rows, step),
        x_NCFHW=x,
        x_next_NCFHW=x_next,
        logp_old_N=log_prob(x_next, mean, std, dt),
    )


def joined(parts: list[Transitions], like: torch.Tensor) -> Transitions:
    """The parts' transitions in one; `like` gives an empty one its latent shape."""
    empty = torch.empty(0, dtype=torch.long)
    none = Transitions(
        rollout_N=empty, step_N=empty, x_NCFHW=like[:0], x_next_NCFHW=like[:0], logp_old_N=like.new_empty(0)
    )
    return Transitions(**{name: torch.cat([getattr(part, name) for part in [none, *parts]]) for name in vars(none)})


def joined_rollouts(batch: PromptBatch, parts: list[Rollouts]) -> Rollouts:
    """The rollouts of the whole batch from those of its parts, in order."""
    first_rows = itertools.accumulate((len(part.batch) for part in parts), initial=0)
    transitions = [
        replace(part.transitions, rollout_N=part.transitions.rollout_N + first)
        for part, first in zip(parts, first_rows, strict=False)
    ]
    return Rollouts(
        batch=batch,
        condition_BMD=torch.cat([part.condition_BMD for part in parts]),
        video_BFHWC=torch.cat([part.video_BFHWC for part in parts]),
        transitions=joined(transitions, parts[0].transitions.x_NCFHW),
    )


def no_noise(step: int, rows: torch.Tensor) -> torch.Tensor:
    """For a deterministic rollout, whose mask asks for none."""
    raise AssertionError("a deterministic rollout asked for noise")
