"""Score the tiny world's videos in closed form, differentiably, on decoded frames (ours).

`colour`      the softmax probability of the asked colour, given the shape's mean colour; mean over frames; in [0, 1].
`motion`      tanh of the centroid's displacement along the asked direction, in units of 6 pixels; in [-1, 1].
`smoothness`  exp(-0.8 acceleration - flicker): mean |second difference| of the centroid in pixels, and mean change of
              the visible mass from frame to frame, relative to its mean; in [0, 1].
Each is multiplied by visibility, the mean over frames of 1 - exp(-mass / 6), where mass is the sum of brightness above 0.1
over pixels and colours. The total is the sum of the three.
"""

from dataclasses import dataclass

import torch

from flash_grpo.tiny_world.clips import COLOURS, colour_of, direction_of, parse
from flash_grpo.tiny_world.closed_form import ClosedForm


@dataclass(frozen=True, kw_only=True)
class ShapesReward(ClosedForm):
    """Score videos of the tiny world by the closed forms above; texts must be among its captions."""

    temperature: float = 0.08  # of the softmax over colours, in units of cosine similarity
    threshold: float = 0.1  # brightness in [0, 1]; darker pixels are ground
    full_mass: float = 6.0  # sum over pixels and colours at which a shape is 63 % visible
    full_way: float = 6.0  # pixels, the displacement of the slowest shape of the training clips

    parse = staticmethod(parse)

    def score(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> dict[str, torch.Tensor]:
        above_BFHWC = (video_BFHWC - self.threshold).clamp(min=0)
        weight_BFHW = above_BFHWC.sum(-1)
        mass_BF = weight_BFHW.sum((2, 3))
        visible_B = (1 - torch.exp(-mass_BF / self.full_mass)).mean(1)
        centre_BF2 = centroid(weight_BFHW, mass_BF)
        parts = {
            "colour": visible_B * self._colour(above_BFHWC.sum((2, 3)), text),
            "motion": visible_B * self._motion(centre_BF2, text),
            "smoothness": visible_B * _smoothness(centre_BF2, mass_BF),
        }
        return parts | {"total": sum(parts.values())}

    def _colour(self, colour_BFC: torch.Tensor, text: tuple[str, ...]) -> torch.Tensor:
        palette_KC = (torch.tensor(list(COLOURS.values())) - self.threshold).clamp(min=0).to(colour_BFC)
        cosine_BFK = unit(colour_BFC) @ unit(palette_KC).T
        asked_B = colour_of(text).to(colour_BFC.device)
        probability_BK = (cosine_BFK / self.temperature).softmax(-1).mean(1)
        return probability_BK.gather(1, asked_B[:, None])[:, 0]

    def _motion(self, centre_BF2: torch.Tensor, text: tuple[str, ...]) -> torch.Tensor:
        way_B2 = centre_BF2[:, -1] - centre_BF2[:, 0]
        return torch.tanh((way_B2 * direction_of(text).to(way_B2)).sum(-1) / self.full_way)


def centroid(weight_BFHW: torch.Tensor, mass_BF: torch.Tensor) -> torch.Tensor:
    """Return the centroid (x right, y down) in pixels from the frame's middle, [B, F, 2]; the middle if nothing shows."""
    height, width = weight_BFHW.shape[2:]
    x_W = torch.arange(width).to(mass_BF) - (width - 1) / 2
    y_H = torch.arange(height).to(mass_BF) - (height - 1) / 2
    moment_BF2 = torch.stack([weight_BFHW.sum(2) @ x_W, weight_BFHW.sum(3) @ y_H], dim=-1)
    return moment_BF2 / (mass_BF[..., None] + 1e-3)


def _smoothness(centre_BF2: torch.Tensor, mass_BF: torch.Tensor) -> torch.Tensor:
    acceleration_B = (centre_BF2.diff(dim=1, n=2).square().sum(-1) + 1e-6).sqrt().mean(1)
    flicker_B = mass_BF.diff(dim=1).abs().mean(1) / (mass_BF.mean(1) + 1e-3)
    return torch.exp(-0.8 * acceleration_B - flicker_B)


def unit(vector_C: torch.Tensor) -> torch.Tensor:
    return vector_C / (vector_C.square().sum(-1, keepdim=True) + 1e-6).sqrt()
