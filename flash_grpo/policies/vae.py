"""Decode latents by Wan's own VAE, behind the two calls that a policy makes: `latent_shape` and `decode`."""

import torch
from diffusers import AutoencoderKLWan


class WanVideoDecoder:
    """Decode latents, scaled as the transformer sees them, to videos; in float32, like WanPipeline.

    tiling: decode in overlapping tiles of 256 pixels. slicing: one video at a time. Both bound memory; tiles are
    blended, so tiled and whole decoding differ slightly.
    """

    def __init__(self, vae: AutoencoderKLWan, tiling: bool = False, slicing: bool = False):
        self.vae = vae.eval().requires_grad_(False)
        if tiling:
            vae.enable_tiling()
        if slicing:
            vae.enable_slicing()

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) of the latent of a video of these sizes; ValueError if they do not divide."""
        group, scale = (
            self.vae.config.scale_factor_temporal,
            self.vae.config.scale_factor_spatial,
        )  # 16 in Wan2.2-TI2V-5B
        if (frames - 1) % group or height % (2 * scale) or width % (2 * scale):
            raise ValueError(
                f"model.frames={frames}, height={height}, width={width}: frames must be 1 + a multiple of {group}, "
                f"height and width multiples of {2 * scale}"
            )
        return self.vae.config.z_dim, 1 + (frames - 1) // group, height // scale, width // scale

    @torch.no_grad()
    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """Return the float videos [B, F, H, W, 3], about in [0, 1] and not clamped."""
        latent = latent_BCFHW.float()
        video_BCFHW = self.vae.decode(
            latent * self._per_channel("latents_std", latent) + self._per_channel("latents_mean", latent),
            return_dict=False,
        )[0]
        return (video_BCFHW / 2 + 0.5).permute(0, 2, 3, 4, 1)

    def _per_channel(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.vae.config[name]).to(like).reshape(1, -1, 1, 1, 1)
