"""Combine several rewards into one: a weighted sum."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.protocols import Asked, Reward, score_flops
from flash_grpo.algorithm.scoring import ask
from flash_grpo.algorithm.types import Scores


@dataclass(frozen=True, kw_only=True)
class CompositeReward:
    """Score videos by the sum of weight x total over rewards.

    rewards, weights: by name. Parts: each reward's own parts, and its total under its name.
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.rewards or set(self.rewards) != set(self.weights):
            raise ValueError(
                f"reward.weights: it names {', '.join(sorted(self.weights)) or 'nothing'}, reward.rewards "
                f"{', '.join(sorted(self.rewards)) or 'nothing'}; both must name the same"
            )
        for name, weight in self.weights.items():
            ranges.number(f"reward.weights.{name}", weight)
        if not any(self.weights.values()):
            raise ValueError("reward.weights: all are 0, so nothing would be trained")

    def flops(self, video_shape: tuple[int, ...], text: str) -> float:
        """Return the FLOPs of scoring one video (F, H, W, 3) by all rewards."""
        return sum(score_flops(reward, video_shape, text) for reward in self.rewards.values())

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        return self.ask(video_BFHWC, text).get()

    def ask(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> "AskedComposite":
        asked = {name: ask(reward, video_BFHWC, text) for name, reward in self.rewards.items()}
        return AskedComposite(asked, self.weights)


@dataclass(frozen=True)
class AskedComposite:
    """Scores on their way from several rewards, to be summed. asked, weights: by the reward's name."""

    asked: Mapping[str, Asked]
    weights: Mapping[str, float]

    def ready(self) -> bool:
        return all(asked.ready() for asked in self.asked.values())

    def get(self) -> Scores:
        scores = {name: asked.get() for name, asked in self.asked.items()}
        total_B = sum(self.weights[name] * score.total_B for name, score in scores.items())
        parts = {part: value for score in scores.values() for part, value in score.parts.items()}
        return Scores(
            total_B=total_B,
            parts=parts | {name: score.total_B for name, score in scores.items()},
            device_seconds=sum(score.device_seconds for score in scores.values()),
            source=tuple(f"{name}.{item}" for name, score in scores.items() for item in score.source),
        )
