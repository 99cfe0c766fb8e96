"""See what a video of the scenes world shows: its ground, and the ball's place, colour and size. Differentiable.

The ground is the mean of the border's pixels. A pixel's weight is its distance from the ground in RGB, less `THRESHOLD`.
"""

from dataclasses import dataclass

import torch

from flash_grpo.tiny_world.reward import centroid

THRESHOLD = 0.15  # of the distance from the ground
FULL_MASS = 0.8  # summed weight of a frame in which a ball is 63 % visible


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen in B videos of F frames."""

    ground_BC: torch.Tensor

    centre_BF2: torch.Tensor
    """In pixels from the frame's middle, x right, y down."""

    contrast_BFC: torch.Tensor
    """The ball's mean colour less the ground's. Its direction tells the colour; its length also how soft the ball is."""

    area_B: torch.Tensor
    """Pixels that the ball covers: (sum of w)² / sum of w², mean over frames; does not depend on how bright it is."""

    visible_B: torch.Tensor
    """Mean over frames of 1 - exp(-mass / FULL_MASS), in [0, 1]."""

    @property
    def way_B2(self) -> torch.Tensor:
        """Return the ball's way from the first frame to the last, in pixels."""
        return self.centre_BF2[:, -1] - self.centre_BF2[:, 0]


def see(video_BFHWC: torch.Tensor) -> Sight:
    """Measure float videos in [0, 1]."""
    ground_BC = _border(video_BFHWC).mean(1)
    above_BFHWC = video_BFHWC - ground_BC[:, None, None, None]
    weight_BFHW = (length(above_BFHWC) - THRESHOLD).clamp(min=0)
    mass_BF = weight_BFHW.sum((2, 3))
    return Sight(
        ground_BC=ground_BC,
        centre_BF2=centroid(weight_BFHW, mass_BF),
        contrast_BFC=(weight_BFHW[..., None] * above_BFHWC).sum((2, 3)) / (mass_BF[..., None] + 1e-3),
        area_B=(mass_BF.square() / (weight_BFHW.square().sum((2, 3)) + 1e-3)).mean(1),
        visible_B=(1 - torch.exp(-mass_BF / FULL_MASS)).mean(1),
    )


def length(vector_C: torch.Tensor) -> torch.Tensor:
    """Return the length of the last axis's vectors, with a gradient at 0."""
    return (vector_C.square().sum(-1) + 1e-6).sqrt()


def _border(video_BFHWC: torch.Tensor) -> torch.Tensor:
    """Return the border's pixels of all frames, [B, N, C]."""
    border_HW = torch.ones(video_BFHWC.shape[2:4], dtype=torch.bool, device=video_BFHWC.device)
    border_HW[1:-1, 1:-1] = False
    return video_BFHWC[:, :, border_HW].flatten(1, 2)
