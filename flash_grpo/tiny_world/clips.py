"""Render the tiny world's clips: 9 frames of 16x16 RGB, one soft-edged coloured shape that moves over a dark ground.

Shape legend as in `algorithm/types.py`: B videos, F frame, H height, W width, C colour. Lengths are in pixels, colours in
[0, 1].
"""

from dataclasses import dataclass
from itertools import product

import torch

FRAMES = 9
SIZE = 16
GROUND = 0.05
EDGE = 0.9
COLOURS = {"red": (0.95, 0.15, 0.15), "green": (0.15, 0.85, 0.2), "blue": (0.15, 0.3, 1.0), "yellow": (0.95, 0.9, 0.1)}
SHAPES = ("ball", "square")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The colour, shape and direction that a caption asks for; `str` gives the caption back."""

    colour: str
    shape: str
    direction: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} moving {self.direction}"


_CAPTIONS = {
    str(caption): caption
    for caption in (Caption(colour=c, shape=s, direction=d) for c, s, d in product(COLOURS, SHAPES, DIRECTIONS))
}


def captions() -> list[str]:
    """Return the 32 captions, always in the same order: colour, then shape, then direction (the fastest)."""
    return list(_CAPTIONS)


def parse(text: str) -> Caption:
    """Return what `text` asks for; ValueError if it is not one of `captions()`."""
    if text not in _CAPTIONS:
        allowed = f"a {'|'.join(COLOURS)} {'|'.join(SHAPES)} moving {'|'.join(DIRECTIONS)}"
        raise ValueError(f"{text!r} is not a caption of the tiny world; allowed: {allowed!r}")
    return _CAPTIONS[text]


def colour_of(texts: list[str] | tuple[str, ...]) -> torch.Tensor:
    """Return the index in `COLOURS` of the colour each text asks for, int64 [B]."""
    return torch.tensor([list(COLOURS).index(parse(text).colour) for text in texts])


def direction_of(texts: list[str] | tuple[str, ...]) -> torch.Tensor:
    """Return the unit vector (x right, y down) in which each text asks the shape to move, float32 [B, 2]."""
    return torch.tensor([DIRECTIONS[parse(text).direction] for text in texts])


def render(texts: list[str] | tuple[str, ...], generator: torch.Generator) -> torch.Tensor:
    """Render a clip per text, float32 [B, 9, 16, 16, 3] in [0, 1]; only size, speed and start are drawn."""
    radius_B, centre_BF2 = draw_motion(direction_of(texts), (2.2, 0.8), (6.0, 3.0), generator)
    round_B = torch.tensor([parse(text).shape == "ball" for text in texts])
    cover_BFHW1 = coverage(radius_B[:, None], centre_BF2, round_B[:, None])[..., None]
    colour_BC = torch.tensor(list(COLOURS.values()))[colour_of(texts)]
    return GROUND + cover_BFHW1 * (colour_BC[:, None, None, None] - GROUND)


def coverage(radius_BF: torch.Tensor, centre_BF2: torch.Tensor, round_BF: torch.Tensor) -> torch.Tensor:
    """Return how much of each pixel a shape covers, [B, F, 16, 16] in [0, 1]; the arguments' B and F may be 1.

    centre_BF2: x right, y down, from the frame's upper left corner. round_BF: True for a ball, False for a square.
    """
    pixel_W = torch.arange(SIZE) + 0.5
    pixel_HW2 = torch.stack(torch.meshgrid(pixel_W, pixel_W, indexing="xy"), dim=-1)
    offset_BFHW2 = pixel_HW2 - centre_BF2[:, :, None, None]
    ball_BFHW, square_BFHW = offset_BFHW2.norm(dim=-1), offset_BFHW2.abs().amax(-1) / 0.9
    distance_BFHW = torch.where(round_BF[..., None, None], ball_BFHW, square_BFHW)
    return torch.sigmoid((radius_BF[..., None, None] - distance_BFHW) / EDGE)


def draw_motion(
    direction_B2: torch.Tensor,
    radius: tuple[float | torch.Tensor, float],
    way: tuple[float | torch.Tensor, float],
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw radius [B] and centre per frame [B, F, 2] of shapes that move along unit vectors, well inside the frame.

    radius, way: the least value in pixels, a number or [B], and the width of the uniform distribution above it.
    """
    draw_4B = torch.rand(4, len(direction_B2), generator=generator)
    radius_B = radius[0] + radius[1] * draw_4B[0]
    path_B2 = direction_B2 * (way[0] + way[1] * draw_4B[1])[:, None]
    room_B2 = (SIZE - 2 * radius_B[:, None] - path_B2.abs()) / 2
    middle_B2 = SIZE / 2 + room_B2 * (draw_4B[2:].T - 0.5)
    progress_F = torch.linspace(-0.5, 0.5, FRAMES)
    return radius_B, middle_B2[:, None] + path_B2[:, None] * progress_F[:, None]
