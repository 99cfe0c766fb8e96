"""Score how much a frame looks like one of a training clip, whatever the caption (ours): a reward to hold out.

Each frame is compared with clean renders of one shape on the ground: a ball or a square in each of the four colours, with
RADII, its centre at the frame's own centroid.

`fidelity`    1 - |frame - render|² / |render - ground|² for the best of these renders, at least 0; mean over frames. 1 is a
              clean render; an empty frame, a dim, bloated or haloed shape and several shapes are below.

`ShapesReward` scores colour and direction; this reward scores neither, so training on `ShapesReward` gets no signal from it.
"""

from dataclasses import dataclass

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.types import Scores
from flash_grpo.tiny_world.clips import COLOURS, GROUND, SIZE, coverage
from flash_grpo.tiny_world.reward import centroid

RADII = (2.2, 2.4, 2.6, 2.8, 3.0)  # pixels, those of the training clips


@dataclass(frozen=True, kw_only=True)
class PictureFidelity:
    """Score videos of the tiny world by the closed form above; the texts are ignored."""

    threshold: float = 0.1  # brightness in [0, 1]; darker pixels are ground, as in `ShapesReward`

    def __post_init__(self) -> None:
        ranges.number("reward.threshold", self.threshold, above=0)

    @torch.no_grad()
    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        """Score uint8 videos [B, F, H, W, 3]."""
        total_B = self.score(video_BFHWC.float() / 255)
        return Scores(total_B=total_B, parts={"fidelity": total_B})

    def score(self, video_BFHWC: torch.Tensor) -> torch.Tensor:
        """Return the fidelity, float32 [B], of float videos in [0, 1]."""
        weight_BFHW = (video_BFHWC - self.threshold).clamp(min=0).sum(-1)
        centre_N2 = centroid(weight_BFHW, weight_BFHW.sum((2, 3))).flatten(0, 1) + SIZE / 2
        cover_NSHW = _covers(centre_N2)
        above_NHWC = video_BFHWC.flatten(0, 1) - GROUND
        colour_KC = torch.tensor(list(COLOURS.values())) - GROUND
        along_NSK = torch.einsum("nshw,nhwc,kc->nsk", cover_NSHW, above_NHWC, colour_KC)
        render_NSK = cover_NSHW.square().sum((2, 3))[..., None] * colour_KC.square().sum(1)  # |render - ground|²
        residual_NSK = above_NHWC.square().sum((1, 2, 3))[:, None, None] - 2 * along_NSK + render_NSK
        fidelity_N = (1 - residual_NSK / render_NSK).amax((1, 2)).clamp(min=0)
        return fidelity_N.unflatten(0, video_BFHWC.shape[:2]).mean(1)


def _covers(centre_N2: torch.Tensor) -> torch.Tensor:
    """Return how much of each pixel each shape of RADII covers, [N, S, 16, 16], balls first. centre_N2: see `coverage`."""
    radius_1S = torch.tensor(RADII).repeat(2)[None]
    round_1S = torch.tensor([True, False]).repeat_interleave(len(RADII))[None]
    return coverage(radius_1S, centre_N2[:, None], round_1S)
