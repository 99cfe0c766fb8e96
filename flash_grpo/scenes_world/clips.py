"""Render the scenes world's clips: 9 frames of 16x16 RGB, a soft-edged ball that moves over a plain ground.

A caption asks for colour, size, pace, direction and ground. Of each colour one direction is held out: captions that say
both are never said in pretraining or in training, only in evaluation. Every direction is held out for two colours, so that
the two sets of captions ask equally often for everything else. Lengths are in pixels, colours in [0, 1].
"""

from dataclasses import astuple, dataclass
from itertools import product

import torch

from flash_grpo.tiny_world.clips import DIRECTIONS, coverage, draw_motion

COLOURS = {
    "red": (0.95, 0.15, 0.15),
    "orange": (1.0, 0.55, 0.1),
    "yellow": (0.95, 0.9, 0.15),
    "green": (0.15, 0.85, 0.2),
    "cyan": (0.15, 0.9, 0.95),
    "blue": (0.15, 0.3, 1.0),
    "pink": (0.95, 0.25, 0.85),
    "white": (0.95, 0.95, 0.95),
}
SIZES = {"small": 1.8, "large": 3.0}  # the radius in the middle of its range
PACES = {"slowly": 3.5, "fast": 8.0}  # the way from the first frame to the last, likewise
GROUNDS = {"night": (0.04, 0.04, 0.06), "earth": (0.34, 0.2, 0.1), "water": (0.06, 0.18, 0.36)}
RADIUS_RANGE = 0.3
WAY_RANGE = 1.0
WORDS = {"colour": COLOURS, "size": SIZES, "pace": PACES, "direction": DIRECTIONS, "ground": GROUNDS}


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a caption asks for, a word of `WORDS` each; `str` gives the caption back."""

    colour: str
    size: str
    pace: str
    direction: str
    ground: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} ball moving {self.pace} {self.direction} over {self.ground}"

    @property
    def held_out(self) -> bool:
        """Return True if this colour and this direction are never said together before evaluation."""
        return list(COLOURS).index(self.colour) % len(DIRECTIONS) == list(DIRECTIONS).index(self.direction)


_CAPTIONS = {
    str(caption): caption
    for caption in (Caption(**dict(zip(WORDS, words, strict=True))) for words in product(*WORDS.values()))
}


def captions(*, held_out: bool) -> list[str]:
    """Return the 288 captions of training or the 96 that are held out, always in the same order."""
    return [text for text, caption in _CAPTIONS.items() if caption.held_out == held_out]


def parse(text: str) -> Caption:
    """Return what `text` asks for; ValueError if it is not a caption of the scenes world."""
    if text not in _CAPTIONS:
        allowed = Caption(**{name: "|".join(words) for name, words in WORDS.items()})
        raise ValueError(f"{text!r} is not a caption of the scenes world; allowed: '{allowed}'")
    return _CAPTIONS[text]


def asked(texts: list[str] | tuple[str, ...]) -> torch.Tensor:
    """Return the index of each asked word in `WORDS`, int64 [B, A]: colour, size, pace, direction, ground."""
    return torch.tensor(
        [
            [list(words).index(word) for words, word in zip(WORDS.values(), astuple(parse(text)), strict=True)]
            for text in texts
        ]
    ).reshape(len(texts), len(WORDS))


def values_of(index_BA: torch.Tensor, name: str) -> torch.Tensor:
    """Return what the words of attribute `name` mean, float32 [B] or [B, ...], for `asked`'s indices."""
    return torch.tensor(list(WORDS[name].values()))[index_BA[:, list(WORDS).index(name)]]


def render(index_BA: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Render a clip for each row of `asked`'s indices, float32 [B, 9, 16, 16, 3] in [0, 1].

    Radius, way and start are drawn, the first two within a narrow range around what the words mean.
    """
    radius = (values_of(index_BA, "size") - RADIUS_RANGE / 2, RADIUS_RANGE)
    way = (values_of(index_BA, "pace") - WAY_RANGE / 2, WAY_RANGE)
    radius_B, centre_BF2 = draw_motion(values_of(index_BA, "direction"), radius, way, generator)
    ball_11 = torch.ones(1, 1, dtype=torch.bool)
    cover_BFHW1 = coverage(radius_B[:, None], centre_BF2, ball_11)[..., None]
    colour_B111C, ground_B111C = (values_of(index_BA, name)[:, None, None, None] for name in ("colour", "ground"))
    return ground_B111C + cover_BFHW1 * (colour_B111C - ground_B111C)
