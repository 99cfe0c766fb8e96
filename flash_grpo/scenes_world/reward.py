"""Score the scenes world's videos in closed form, differentiably, on decoded frames (ours). For what is seen, see `sight`.

`colour`  the softmax probability of the asked colour among the eight, by the cosine between the ball's contrast to the ground
          and each colour's; mean over frames; in [0, 1].
`motion`  1 - |way - asked way| / (|way| + |asked way|): 1 for the asked direction and pace, 0 for a ball that rests or moves
          the other way; in [0, 1].
`scene`   the softmax probability of the asked ground among the three, by the squared distance in RGB; in [0, 1].
Each is multiplied by visibility. The total is the sum of the three. Size and picture are left to `held_out`.
"""

from dataclasses import dataclass

import torch

from flash_grpo.scenes_world.clips import COLOURS, GROUNDS, WORDS, asked, parse, values_of
from flash_grpo.scenes_world.sight import Sight, length, see
from flash_grpo.tiny_world.closed_form import ClosedForm


@dataclass(frozen=True, kw_only=True)
class ScenesReward(ClosedForm):
    """Score videos of the scenes world by the closed forms above; texts must be among its captions."""

    colour_temperature: float = 0.01  # of the softmax over colours, in units of cosine similarity
    ground_temperature: float = 0.02  # of the softmax over grounds, in units of squared distance in RGB

    parse = staticmethod(parse)

    def score(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> dict[str, torch.Tensor]:
        sight, index_BA = see(video_BFHWC), asked(text).to(video_BFHWC.device)
        parts = {
            "colour": self.colour(video_BFHWC, sight, index_BA),
            "motion": sight.visible_B * _motion(sight, index_BA),
            "scene": sight.visible_B * self._scene(sight, index_BA),
        }
        return parts | {"total": sum(parts.values())}

    def colour(self, video_BFHWC: torch.Tensor, sight: Sight, index_BA: torch.Tensor) -> torch.Tensor:
        """Return the part `colour` [B], times visibility."""
        palette_KC = torch.tensor(list(COLOURS.values())).to(video_BFHWC)
        wanted_BKC = palette_KC - sight.ground_BC[:, None]
        cosine_BFK = _unit(sight.contrast_BFC) @ _unit(wanted_BKC).mT
        probability_BK = (cosine_BFK / self.colour_temperature).softmax(-1).mean(1)
        return sight.visible_B * _at(probability_BK, index_BA, "colour")

    def _scene(self, sight: Sight, index_BA: torch.Tensor) -> torch.Tensor:
        ground_KC = torch.tensor(list(GROUNDS.values())).to(sight.ground_BC)
        squared_BK = (sight.ground_BC[:, None] - ground_KC).square().sum(-1)
        return _at((-squared_BK / self.ground_temperature).softmax(-1), index_BA, "ground")


@dataclass(frozen=True, kw_only=True)
class FlawedScenesReward(ScenesReward):
    """The same with a planted flaw: `colour` counts the asked colour anywhere in the frame, so a larger ball scores higher.

    `colour` is the mean over frames of the sum over pixels of 1 - distance / `colour_distance`, at least 0, in units of
    `full_area` pixels. It has no upper bound below a frame full of the colour.
    """

    colour_distance: float = 0.5  # in RGB, beyond which a pixel has another colour
    full_area: float = 20.0  # pixels, about a large ball's

    def colour(self, video_BFHWC: torch.Tensor, sight: Sight, index_BA: torch.Tensor) -> torch.Tensor:
        """Return the part `colour` [B]."""
        colour_BC = values_of(index_BA, "colour").to(video_BFHWC)
        distance_BFHW = length(video_BFHWC - colour_BC[:, None, None, None])
        return (1 - distance_BFHW / self.colour_distance).clamp(min=0).sum((2, 3)).mean(1) / self.full_area


def _motion(sight: Sight, index_BA: torch.Tensor) -> torch.Tensor:
    asked_B2 = (values_of(index_BA, "direction") * values_of(index_BA, "pace")[:, None]).to(sight.way_B2)
    return 1 - length(sight.way_B2 - asked_B2) / (length(sight.way_B2) + length(asked_B2))


def _at(value_BK: torch.Tensor, index_BA: torch.Tensor, name: str) -> torch.Tensor:
    """Return each row's value at the asked word of attribute `name`, [B]."""
    return value_BK.gather(1, index_BA[:, [list(WORDS).index(name)]])[:, 0]


def _unit(vector_C: torch.Tensor) -> torch.Tensor:
    return vector_C / length(vector_C)[..., None]
