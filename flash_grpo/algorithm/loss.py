"""Compute the policy loss."""

import math
from dataclasses import replace

import torch

from flash_grpo.algorithm.types import LossTerms


def clipped_surrogate(
    logp_N: torch.Tensor,
    logp_old_N: torch.Tensor,
    advantage_N: torch.Tensor,
    weight_N: torch.Tensor,
    ratio_clip: float | None,
) -> LossTerms:
    """Return max(-w·A·r, -w·A·clip(r, 1 ± ratio_clip)), per trained step [N]. ratio_clip: None is no clip."""
    ratio_N = (logp_N - logp_old_N).exp()
    gain_N = weight_N * advantage_N
    clip = math.inf if ratio_clip is None else ratio_clip
    loss_N = torch.maximum(-gain_N * ratio_N, -gain_N * ratio_N.clamp(1 - clip, 1 + clip))
    ratio = ratio_N.detach()
    return LossTerms(
        loss_N=loss_N,
        ratio_N=ratio,
        clipped_N=(ratio - 1).abs() > clip,
        approx_kl_N=ratio - 1 - ratio.log(),
        base_kl_N=torch.zeros_like(ratio),
    )


def without_ratio(loss_N: torch.Tensor) -> LossTerms:
    """Return the terms of a loss that compares no two policies: its ratio is 1."""
    zero_N = torch.zeros_like(loss_N.detach())
    return LossTerms(loss_N=loss_N, ratio_N=zero_N + 1, clipped_N=zero_N.bool(), approx_kl_N=zero_N, base_kl_N=zero_N)


def with_kl(terms: LossTerms, base_kl_N: torch.Tensor, kl_weight: float) -> LossTerms:
    """Return the terms with kl_weight·KL(policy || base) added to the loss."""
    return replace(terms, loss_N=terms.loss_N + kl_weight * base_kl_N, base_kl_N=base_kl_N.detach())


def gaussian_kl(mean: torch.Tensor, base_mean: torch.Tensor, noise_std_N: torch.Tensor) -> torch.Tensor:
    """Return the exact KL of two Gaussians with equal std, mean over latent elements: [N]. `noise_std_N`: std·sqrt(-dt)."""
    return ((mean - base_mean) ** 2).flatten(1).mean(1) / (2 * noise_std_N**2)
