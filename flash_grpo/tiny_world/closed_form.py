"""What the small worlds' rewards in closed form share: their settings' range, the check of texts, the call on videos."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.types import Scores


class ClosedForm(ABC):
    """A reward of a small world's captions. Its fields are numbers above 0. parse: raises ValueError for other texts."""

    parse: ClassVar[Callable[[str], Any]]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            ranges.number(f"reward.{name}", value, above=0)

    @classmethod
    def check_texts(cls, texts: tuple[str, ...]) -> None:
        """Raise ValueError if a text is not a caption of the world."""
        for text in texts:
            cls.parse(text)

    @torch.no_grad()
    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        """Score uint8 videos [B, F, H, W, 3]."""
        parts = self.score(video_BFHWC.float() / 255, text)
        return Scores(total_B=parts.pop("total"), parts=parts)

    @abstractmethod
    def score(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Return the parts and their `total`, float32 [B] each, of float videos in [0, 1]; gradients flow to the videos."""
