"""Make the denoising grid and the stochastic step on it. We own both: libraries' schedulers change under a run."""

import hashlib
import math

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.types import FlowSchedule

GRIDS = ("release", "diffusers")
NOISE_LEVELS = {
    "linear": 1.0,  # release, on Wan
    "flow": 0.7,  # Flow-GRPO, on images
    "cps": 0.8,  # Flow-CPS: its public code's recipe for SD3.5
    "constant": 0.3,  # DanceGRPO
}
"""The SDEs by name, each with its own noise level."""


def flow_schedule(
    num_steps: int,
    shift: float = 3.0,
    noise: str = "linear",
    noise_level: float | None = None,
    max_std: float | None = None,
    grid: str = "release",
) -> FlowSchedule:
    """Return the grid of `num_steps` denoising steps, float32, noisy to clean, with its stochastic step.

    shift: timestep shift s·σ/(1 + (s-1)·σ). grid: "release" is the paper's public code, "diffusers" is what UniPC with flow
    sigmas builds in diffusers 0.42 (Wan's own scheduler). noise: the SDE, "linear", "flow" and "constant" see
    `diffusion_coefficient`, "cps" see `_coefficients_preserving`. noise_level: null is the SDE's own, `NOISE_LEVELS`.
    max_std: upper bound of the diffusion coefficient; null is none. timestep_T is 1000·σ cut to an integer, as both grids
    do. ValueError names the key.
    """
    ranges.whole("schedule.num_steps", num_steps, at_least=2, at_most=1000)
    ranges.number("schedule.shift", shift, at_least=1e-3, at_most=1e3)
    ranges.one_of("schedule.grid", grid, GRIDS)
    sigma_T = _shifted(_uniform(num_steps, grid), shift)
    if grid == "diffusers":
        sigma_T[0] = min(float(sigma_T[0]), 1 - 1e-6)  # UniPC keeps off sigma = 1, where its log-SNR is infinite
    sigma_S = torch.cat([sigma_T, sigma_T.new_zeros(1)])
    x_factor_T, v_factor_T, noise_std_T = _stochastic_step(sigma_S, noise, noise_level, max_std)
    return FlowSchedule(
        sigma_S=sigma_S.float(),
        timestep_T=(1000 * sigma_T).floor().long(),
        dt_T=sigma_S.diff().float(),
        x_factor_T=x_factor_T.float(),
        v_factor_T=v_factor_T.float(),
        noise_std_T=noise_std_T.float(),
    )


def diffusion_coefficient(sigma_T: torch.Tensor, noise: str, noise_level: float) -> torch.Tensor:
    """Return the std s of the "linear", the "flow" or the "constant" SDE at each step, per root of dσ.

    linear (release, Wan): level·σ_1·σ with σ_1 the grid's second entry. flow (Flow-GRPO, images): level·sqrt(σ/(1-σ)), where
    the first step's denominator is 1 - σ_1. Flow-GRPO does so where σ is exactly 1; a grid that begins just below 1 is as
    singular there (ours). constant (DanceGRPO): the level.
    """
    if noise == "constant":
        return torch.full_like(sigma_T, noise_level)
    if noise == "linear":
        return noise_level * sigma_T[1] * sigma_T
    below_one_T = torch.cat([sigma_T[1:2], sigma_T[1:]])
    return noise_level * (sigma_T / (1 - below_one_T)).sqrt()


def check_stochastic(schedule: FlowSchedule, candidate_T: torch.Tensor) -> None:
    """Raise ValueError if a step that may be stochastic, bool [T], reverses the latents or adds no noise."""
    reversing_T = (candidate_T & (schedule.x_factor_T < 0)).nonzero().flatten().tolist()
    if reversing_T:
        raise ValueError(
            f"schedule.noise_level: the SDE's step {reversing_T[0]} would multiply the latents by "
            f"{float(schedule.x_factor_T[reversing_T[0]]):.3g}, below 0; lower schedule.noise_level, bound it by "
            "schedule.max_std, take more schedule.num_steps, or let stochastic steps begin later"
        )
    silent_T = (candidate_T & (schedule.noise_std_T == 0)).nonzero().flatten().tolist()
    if silent_T:
        raise ValueError(
            f"schedule.noise: the SDE adds no noise at step {silent_T[0]}, so it has no log-probability there; let stochastic "
            "steps end earlier"
        )


def fingerprint(schedule: FlowSchedule) -> str:
    """Return the sha256 of the grid and its stochastic step, so that a manifest can tell two schedules apart."""
    tensors = vars(schedule).values()
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # x_factor, v_factor, noise_std, see `FlowSchedule`


def _stochastic_step(sigma_S: torch.Tensor, noise: str, noise_level: float | None, max_std: float | None) -> Step:
    """Return the SDE's step on the grid; for the arguments see `flow_schedule`."""
    ranges.one_of("schedule.noise", noise, tuple(NOISE_LEVELS))
    ranges.number("schedule.noise_level", noise_level, above=0, null=True)
    ranges.number("schedule.max_std", max_std, above=0, null=True)
    level = NOISE_LEVELS[noise] if noise_level is None else noise_level
    _check_noise(noise, level, max_std)
    if noise == "cps":
        return _coefficients_preserving(sigma_S, level)
    std_T = diffusion_coefficient(sigma_S[:-1], noise, level).clamp(max=math.inf if max_std is None else max_std)
    return _marginal_preserving(sigma_S.float(), std_T.float(), sigma_S.diff().float())


def _check_noise(noise: str, level: float, max_std: float | None) -> None:
    if noise == "cps" and level > 1:
        raise ValueError(f"schedule.noise_level={level}: at most 1 for noise=cps, where the whole noise is fresh")
    if max_std is not None and noise == "cps":
        raise ValueError(
            f"schedule.max_std={max_std}: noise=cps has no diffusion coefficient to bound; lower noise_level"
        )


def _marginal_preserving(sigma_S: torch.Tensor, std_T: torch.Tensor, dt_T: torch.Tensor) -> Step:
    """Return x_factor, v_factor and noise_std of an Euler-Maruyama step of the SDE with the ODE's marginals (Flow-GRPO)."""
    sigma_T = sigma_S[:-1]
    half_variance_rate_T = std_T**2 / (2 * sigma_T)
    return 1 + half_variance_rate_T * dt_T, 1 + half_variance_rate_T * (1 - sigma_T), std_T * (-dt_T) ** 0.5


def _coefficients_preserving(sigma_S: torch.Tensor, level: float) -> Step:
    """Return x_factor, v_factor and noise_std of Flow-CPS' step (arXiv 2509.05952).

    x_next = (1-σ')·x̂_0 + σ'·cos(η·π/2)·ε̂ + σ'·sin(η·π/2)·ε with σ' the next sigma, x̂_0 = x - σ·v, ε̂ = x + (1-σ)·v and η the
    noise level: its noise is exactly the schedule's. The last step, to σ' = 0, adds none. Its authors' code leaves
    1/(2·noise_std²) out of the log-probability; ours is the density.
    """
    sigma_T, next_T = sigma_S[:-1], sigma_S[1:]
    kept_T = next_T * math.cos(level * math.pi / 2)
    v_coefficient_T = -(1 - next_T) * sigma_T + kept_T * (1 - sigma_T)
    return 1 - next_T + kept_T, v_coefficient_T / (next_T - sigma_T), next_T * math.sin(level * math.pi / 2)


def _uniform(num_steps: int, grid: str) -> torch.Tensor:
    alpha = torch.linspace(1, 1 / 1000, num_steps + 1, dtype=torch.float64)
    if grid == "release":
        return (1 - alpha).flip(0)[:-1]
    return alpha[:-1]


def _shifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)
