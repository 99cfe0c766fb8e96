"""What every reward is: a callable that scores decoded videos against the texts they were made for."""

from dataclasses import dataclass
from typing import Protocol

import torch

from flash_grpo.types import Scores


class RewardError(RuntimeError):
    """A reward that cannot be trained on, or cannot be had. The run stops; its last checkpoint stays."""


class RewardErrorElsewhere(RewardError):
    """Another rank's, of which this one was told."""


class Reward(Protocol):
    """Scores B videos, uint8 [B, F, H, W, 3], against B texts; higher is better."""

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores: ...


class Asked(Protocol):
    """Scores that are on their way."""

    def ready(self) -> bool: ...

    def get(self) -> Scores:
        """Waits for them. RewardError where there are none to be had."""


@dataclass(frozen=True)
class Answered:
    scores: Scores

    def ready(self) -> bool:
        return True

    def get(self) -> Scores:
        return self.scores


def ask(reward: Reward, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Asked:
    """Has the videos scored: now, or, by a reward with an `ask` of its own, elsewhere while the caller goes on."""
    return reward.ask(video_BFHWC, text) if hasattr(reward, "ask") else Answered(reward(video_BFHWC, text))
