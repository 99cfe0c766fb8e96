"""Score what no run trains on: the ball's size, and how much the video looks like a clip, whatever it shows (ours).

`size`      exp(-(log(area / asked area) / 0.4)²): 1 for the asked size, below 0.1 for the other one; in [0, 1].
`fidelity`  the share of |video - ground|² that a clean render has in common with the video: 1 - |video - render|² /
            |video - ground|² for the best render of one ball, its radius one of RADII, its colour fitted by least squares,
            both the same in all frames, its centre at each frame's centroid, over the seen ground; in [0, 1].

`ScenesReward` asks neither, and neither depends on which colour or ground is seen, so they do not rise only because training
raises its own parts. A policy that blows balls up to be paid for more colour loses both.
"""

from dataclasses import dataclass

import torch

from flash_grpo.scenes_world.clips import RADIUS_RANGE, SIZES, WORDS, asked, parse
from flash_grpo.scenes_world.sight import Sight, see
from flash_grpo.tiny_world.clips import SIZE, coverage
from flash_grpo.tiny_world.closed_form import ClosedForm

AREAS = {"small": 22.0, "large": 42.0}  # pixels, as `sight` measures the clips' balls
RADII = tuple(radius + step * RADIUS_RANGE / 2 for radius in SIZES.values() for step in (-1, 0, 1))


@dataclass(frozen=True, kw_only=True)
class HeldOutScenesReward(ClosedForm):
    """Score videos of the scenes world by the closed forms above; texts must be among its captions."""

    area_tolerance: float = 0.4  # in log area

    parse = staticmethod(parse)

    def score(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> dict[str, torch.Tensor]:
        sight = see(video_BFHWC)
        wanted_B = torch.tensor(list(AREAS.values()))[asked(text)[:, list(WORDS).index("size")]].to(sight.area_B)
        size_B = torch.exp(-((sight.area_B + 1e-3).div(wanted_B).log() / self.area_tolerance).square())
        parts = {"size": size_B, "fidelity": fidelity(video_BFHWC, sight)}
        return parts | {"total": sum(parts.values())}


def fidelity(video_BFHWC: torch.Tensor, sight: Sight) -> torch.Tensor:
    """Return the part `fidelity` [B] of float videos in [0, 1] in which `sight` was seen."""
    above_BFHWC = video_BFHWC - sight.ground_BC[:, None, None, None]
    cover_BFSHW = _covers(sight.centre_BF2)
    along_BSC = torch.einsum("bfshw,bfhwc->bsc", cover_BFSHW, above_BFHWC)
    common_BS = along_BSC.square().sum(-1) / cover_BFSHW.square().sum((1, 3, 4))
    return common_BS.amax(1) / (above_BFHWC.square().sum((1, 2, 3, 4)) + 1e-3)


def _covers(centre_BF2: torch.Tensor) -> torch.Tensor:
    """Return how much of each pixel a ball of each of RADII covers at centres from the frame's middle, [B, F, S, H, W]."""
    radius_1S, ball_11 = torch.tensor(RADII)[None], torch.ones(1, 1, dtype=torch.bool)
    centre_N12 = centre_BF2.flatten(0, 1)[:, None] + SIZE / 2
    return coverage(radius_1S, centre_N12, ball_11).unflatten(0, centre_BF2.shape[:2])
