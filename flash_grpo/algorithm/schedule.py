"""Make the denoising grid and the SDE's diffusion coefficient on it. We own both: libraries' schedulers change under a run."""

import hashlib

import torch

from flash_grpo.algorithm.types import FlowSchedule

GRIDS = ("release", "diffusers")
NOISES = ("linear", "flow")


def flow_schedule(
    num_steps: int, shift: float = 3.0, noise: str = "linear", noise_level: float = 1.0, grid: str = "release"
) -> FlowSchedule:
    """Return the grid of `num_steps` denoising steps, float32, noisy to clean.

    shift: timestep shift s·σ/(1 + (s-1)·σ). grid: "release" is the paper's public code, "diffusers" is what UniPC with flow
    sigmas builds in diffusers 0.42 (Wan's own scheduler). noise and noise_level: see `diffusion_coefficient`.
    timestep_T is what the transformer eats: 1000·σ cut to an integer, as both grids do.
    """
    if num_steps < 2:
        raise ValueError(f"schedule.num_steps={num_steps}: at least 2 steps are needed")
    if not shift > 0:
        raise ValueError(f"schedule.shift={shift}: must be positive")
    sigma_T = _shifted(_uniform(num_steps, grid), shift)
    if grid == "diffusers":
        sigma_T[0] = min(float(sigma_T[0]), 1 - 1e-6)  # UniPC keeps off sigma = 1, where its log-SNR is infinite
    sigma_S = torch.cat([sigma_T, sigma_T.new_zeros(1)])
    return FlowSchedule(
        sigma_S=sigma_S.float(),
        timestep_T=(1000 * sigma_T).floor().long(),
        std_T=diffusion_coefficient(sigma_T, noise, noise_level).float(),
        dt_T=sigma_S.diff().float(),
    )


def diffusion_coefficient(sigma_T: torch.Tensor, noise: str, noise_level: float) -> torch.Tensor:
    """Return the SDE's std at each step.

    linear (release, Wan): level·σ_1·σ with σ_1 the grid's second entry. flow (Flow-GRPO, images): level·sqrt(σ/(1-σ)).
    """
    if not noise_level > 0:
        raise ValueError(f"schedule.noise_level={noise_level}: must be positive, an SDE step needs noise")
    if noise == "linear":
        return noise_level * sigma_T[1] * sigma_T
    if noise == "flow":
        return noise_level * (sigma_T / (1 - sigma_T)).sqrt()
    raise ValueError(f"schedule.noise={noise}: allowed are {', '.join(NOISES)}")


def fingerprint(schedule: FlowSchedule) -> str:
    """Return the sha256 of the grid and its std, so that a manifest can tell two grids apart."""
    tensors = (schedule.sigma_S, schedule.timestep_T, schedule.std_T)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def _uniform(num_steps: int, grid: str) -> torch.Tensor:
    alpha = torch.linspace(1, 1 / 1000, num_steps + 1, dtype=torch.float64)
    if grid == "release":
        return (1 - alpha).flip(0)[:-1]
    if grid == "diffusers":
        return alpha[:-1]
    raise ValueError(f"schedule.grid={grid}: allowed are {', '.join(GRIDS)}")


def _shifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)
