"""Encode and decode the tiny world's videos linearly: PCA per patch, in the temporal layout of Wan's VAE.

The first frame is coded alone and every later group of 4 frames together, 4x4 pixels at a time, so F = 1 + 4 (L - 1)
frames of H x W become L latent frames of H/4 x W/4. Each principal component is divided by its standard deviation to
the power `WHITENING`: at 0 the latent is dominated by a few components, at 1 noise in faint ones spoils the picture.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

WHITENING = 0.5


class LinearVideoCodec(ModelMixin, ConfigMixin):
    """Map videos [B, F, H, W, 3] in [0, 1] to latents [B, C, L, H/4, W/4] and back.

    It is saved and loaded like diffusers' models:
    `from_pretrained(checkpoint, subfolder="vae")`, `save_pretrained(checkpoint / "vae")`.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 16, patch_frames: int = 4, patch_size: int = 4):
        super().__init__()
        for name, frames in (("first", 1), ("group", patch_frames)):
            pixels = frames * patch_size * patch_size * 3
            self.register_buffer(f"{name}_mean_P", torch.zeros(pixels))
            self.register_buffer(f"{name}_analysis_PC", torch.zeros(pixels, latent_channels))
            self.register_buffer(f"{name}_synthesis_CP", torch.zeros(latent_channels, pixels))

    @classmethod
    @torch.no_grad()
    def fit(cls, video_BFHWC: torch.Tensor, latent_channels: int = 16) -> "LinearVideoCodec":
        """Fit a codec to float videos in [0, 1]; its latents have variance 1 on average over channels."""
        codec = cls(latent_channels)
        for name, video in (("first", video_BFHWC[:, :1]), ("group", video_BFHWC[:, 1:])):
            patch_NP = codec._patches(video, 1 if name == "first" else codec.config.patch_frames).flatten(0, 3)
            mean_P, analysis_PC, synthesis_CP = _principal_components(patch_NP, codec.config.latent_channels)
            getattr(codec, f"{name}_mean_P").copy_(mean_P)
            getattr(codec, f"{name}_analysis_PC").copy_(analysis_PC)
            getattr(codec, f"{name}_synthesis_CP").copy_(synthesis_CP)
        return codec

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) of the latent of a video of these sizes; ValueError if they do not divide."""
        group, patch = self.config.patch_frames, self.config.patch_size
        if (frames - 1) % group or height % patch or width % patch:
            raise ValueError(
                f"model.frames={frames}, height={height}, width={width}: frames must be 1 + a multiple of {group}, "
                f"height and width multiples of {patch}"
            )
        return self.config.latent_channels, 1 + (frames - 1) // group, height // patch, width // patch

    def encode(self, video_BFHWC: torch.Tensor) -> torch.Tensor:
        """Return the latents [B, C, L, H/4, W/4] of float videos in [0, 1]."""
        first = self._patches(video_BFHWC[:, :1], 1) - self.first_mean_P
        group = self._patches(video_BFHWC[:, 1:], self.config.patch_frames) - self.group_mean_P
        latent_BFHWC = torch.cat([first @ self.first_analysis_PC, group @ self.group_analysis_PC], dim=1)
        return latent_BFHWC.permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """Return the float videos [B, F, H, W, 3]; linear, hence differentiable and NOT clamped: it may leave [0, 1]."""
        latent_BFHWC = latent_BCFHW.permute(0, 2, 3, 4, 1)
        first = latent_BFHWC[:, :1] @ self.first_synthesis_CP + self.first_mean_P
        group = latent_BFHWC[:, 1:] @ self.group_synthesis_CP + self.group_mean_P
        return torch.cat([self._unpatch(first, 1), self._unpatch(group, self.config.patch_frames)], dim=1)

    def _patches(self, video_BFHWC: torch.Tensor, frames: int) -> torch.Tensor:
        """Cut videos [B, F, H, W, 3] into patches [B, F/frames, H/4, W/4, P]."""
        p = self.config.patch_size
        split = video_BFHWC.unflatten(3, (-1, p)).unflatten(2, (-1, p)).unflatten(1, (-1, frames))
        return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)

    def _unpatch(self, patch_BFHWP: torch.Tensor, frames: int) -> torch.Tensor:
        """Put patches together again: the inverse of `_patches`."""
        p = self.config.patch_size
        split = patch_BFHWP.unflatten(4, (frames, p, p, 3)).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return split.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _principal_components(patch_NP: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean [P], analysis [P, C] and synthesis [C, P] of the leading, partly whitened components of patches [N, P]."""
    mean_P = patch_NP.mean(0)
    variance_P, basis_PP = torch.linalg.eigh(torch.cov(patch_NP.T.double()))
    std_C = variance_P[-channels:].flip(0).sqrt()
    basis_PC = basis_PP[:, -channels:].flip(1)
    scale_C = std_C**-WHITENING
    scale_C = scale_C / (std_C * scale_C).square().mean().sqrt()
    return mean_P, (basis_PC * scale_C).float(), (basis_PC / scale_C).T.float()
