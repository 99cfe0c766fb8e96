"""Take one denoising step, deterministic or stochastic, and tell the stochastic one's log-probability.

`x`, `v` are [N, ...] latents and velocities; `sigma`, `std`, `dt` are numbers or [N]. dt < 0.
"""

import math

import torch

from flash_grpo.algorithm.types import FlowSchedule

Scalar = torch.Tensor | float


def ode_step(x: torch.Tensor, v: torch.Tensor, dt: Scalar) -> torch.Tensor:
    """Take an Euler step of the probability-flow ODE."""
    return x + v * _per_row(dt, x)


def sde_mean(x: torch.Tensor, v: torch.Tensor, sigma: Scalar, std: Scalar, dt: Scalar) -> torch.Tensor:
    """Return the mean of the SDE step with the ODE's marginals (Flow-GRPO). With std -> 0 it is the Euler step."""
    sigma, std, dt = (_per_row(value, x) for value in (sigma, std, dt))
    half_variance_rate = std**2 / (2 * sigma)
    return x * (1 + half_variance_rate * dt) + v * (1 + half_variance_rate * (1 - sigma)) * dt


def sde_noise_std(std: Scalar, dt: Scalar) -> Scalar:
    """Return the standard deviation of one step's noise: std·sqrt(-dt)."""
    return std * (-dt) ** 0.5


def log_prob(x_next: torch.Tensor, mean: torch.Tensor, std: Scalar, dt: Scalar) -> torch.Tensor:
    """Return the Gaussian log-density of an SDE step, constants kept, mean over all but the first axis: [N].

    It is defined only for steps that were taken stochastically: a deterministic step has no density.
    """
    scale = torch.as_tensor(_per_row(sde_noise_std(std, dt), x_next))
    density = -((x_next - mean) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def rectification_factor(schedule: FlowSchedule) -> torch.Tensor:
    """Return λ_T = sqrt(-dt)/s + s·sqrt(-dt)(1-σ)/(2σ), the |∂ log p / ∂v| per unit of noise (paper, gradient rectification).

    `log_prob` averages over the D latent elements, so autograd sees λ·|ε|/D.
    """
    first, second = rectification_terms(schedule)
    return first + second


def rectification_terms(schedule: FlowSchedule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return λ's two terms, [T] each; the first alone is LongCat-Video's factor."""
    root, std, sigma = (-schedule.dt_T).sqrt(), schedule.std_T, schedule.sigma_S[:-1]
    return root / std, std * root * (1 - sigma) / (2 * sigma)


def _per_row(value: Scalar, like: torch.Tensor) -> Scalar:
    """Reshape [N] so that it multiplies [N, ...]; a number, or a 0-d tensor, is returned as it is."""
    if isinstance(value, torch.Tensor) and value.ndim == 1:
        return value.reshape(-1, *[1] * (like.ndim - 1))
    return value
