"""What every reward is: a callable that scores decoded videos against the texts they were made for."""

from typing import Protocol

import torch

from flash_grpo.types import Scores


class RewardError(RuntimeError):
    """A reward that cannot be trained on, or cannot be had. The run stops; its last checkpoint stays."""


class Reward(Protocol):
    """Scores B videos, uint8 [B, F, H, W, 3], against B texts; higher is better."""

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores: ...
