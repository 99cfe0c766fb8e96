"""Take one denoising step, deterministic or stochastic, and tell the stochastic one's log-probability.

`x`, `v` are [N, ...] latents and velocities; the factors of a step, see `types.FlowSchedule`, are numbers or [N]. dt < 0.
"""

import math

import torch

from flash_grpo.algorithm.types import FlowSchedule

Scalar = torch.Tensor | float


def ode_step(x: torch.Tensor, v: torch.Tensor, dt: Scalar) -> torch.Tensor:
    """Take an Euler step of the probability-flow ODE."""
    return x + v * _per_row(dt, x)


def sde_mean(x: torch.Tensor, v: torch.Tensor, x_factor: Scalar, v_factor: Scalar, dt: Scalar) -> torch.Tensor:
    """Return the mean of an SDE step. With both factors 1 it is the Euler step."""
    x_factor, v_factor, dt = (_per_row(value, x) for value in (x_factor, v_factor, dt))
    return x * x_factor + v * v_factor * dt


def log_prob(x_next: torch.Tensor, mean: torch.Tensor, noise_std: Scalar) -> torch.Tensor:
    """Return the Gaussian log-density of an SDE step, constants kept, mean over all but the first axis: [N].

    It is defined only for steps that were taken stochastically: a deterministic step has no density.
    """
    scale = torch.as_tensor(_per_row(noise_std, x_next))
    density = -((x_next - mean) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def rectification_factor(schedule: FlowSchedule) -> torch.Tensor:
    """Return λ_T = v_factor·|dt| / noise_std, the |∂ log p / ∂v| per unit of noise (paper, gradient rectification).

    For the linear and the flow SDE, of diffusion coefficient s, this is sqrt(-dt)/s + s·sqrt(-dt)(1-σ)/(2σ). `log_prob`
    averages over the D latent elements, so autograd sees λ·|ε|/D.
    """
    return schedule.v_factor_T * first_rectification_term(schedule)


def first_rectification_term(schedule: FlowSchedule) -> torch.Tensor:
    """Return |dt| / noise_std [T], λ's first term sqrt(-dt)/s: LongCat-Video's factor."""
    return -schedule.dt_T / schedule.noise_std_T


def _per_row(value: Scalar, like: torch.Tensor) -> Scalar:
    """Reshape [N] so that it multiplies [N, ...]; a number, or a 0-d tensor, is returned as it is."""
    if isinstance(value, torch.Tensor) and value.ndim == 1:
        return value.reshape(-1, *[1] * (like.ndim - 1))
    return value
