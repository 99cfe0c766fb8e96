"""Compute the policy loss."""

import torch

from flash_grpo.algorithm.types import LossTerms


def clipped_surrogate(
    logp_N: torch.Tensor,
    logp_old_N: torch.Tensor,
    advantage_N: torch.Tensor,
    weight_N: torch.Tensor,
    ratio_clip: float,
    base_kl_N: torch.Tensor | None = None,
    kl_weight: float = 0.0,
) -> LossTerms:
    """Return max(-w·A·r, -w·A·clip(r, 1 ± ratio_clip)) + kl_weight·KL(policy || base), per transition [N]."""
    ratio_N = (logp_N - logp_old_N).exp()
    gain_N = weight_N * advantage_N
    loss_N = torch.maximum(-gain_N * ratio_N, -gain_N * ratio_N.clamp(1 - ratio_clip, 1 + ratio_clip))
    if base_kl_N is None:
        base_kl_N = torch.zeros_like(loss_N)
    ratio = ratio_N.detach()
    return LossTerms(
        loss_N=loss_N + kl_weight * base_kl_N,
        ratio_N=ratio,
        clipped_N=(ratio - 1).abs() > ratio_clip,
        approx_kl_N=ratio - 1 - ratio.log(),
        base_kl_N=base_kl_N.detach(),
    )


def gaussian_kl(mean: torch.Tensor, base_mean: torch.Tensor, noise_std_N: torch.Tensor) -> torch.Tensor:
    """Return the exact KL of two Gaussians with equal std, mean over latent elements: [N]. `noise_std_N`: std·sqrt(-dt)."""
    return ((mean - base_mean) ** 2).flatten(1).mean(1) / (2 * noise_std_N**2)
