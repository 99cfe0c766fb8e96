"""Several rewards as one: a weighted sum."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flash_grpo.algorithm.protocols import Asked, Reward, ask
from flash_grpo.algorithm.types import Scores


@dataclass(frozen=True, kw_only=True)
class CompositeReward:
    """sum of weight x total over `rewards`, by name. Parts: each one's total under its name, and its own parts."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.rewards or set(self.rewards) != set(self.weights):
            raise ValueError(
                f"reward.weights: they name {', '.join(sorted(self.weights)) or 'nothing'}, reward.rewards "
                f"{', '.join(sorted(self.rewards)) or 'nothing'}; both must name the same"
            )

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        return self.ask(video_BFHWC, text).get()

    def ask(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> "AskedComposite":
        asked = {name: ask(reward, video_BFHWC, text) for name, reward in self.rewards.items()}
        return AskedComposite(asked, self.weights)


@dataclass(frozen=True)
class AskedComposite:
    asked: Mapping[str, Asked]
    weights: Mapping[str, float]

    def ready(self) -> bool:
        return all(one.ready() for one in self.asked.values())

    def get(self) -> Scores:
        scores = {name: one.get() for name, one in self.asked.items()}
        total_B = sum(self.weights[name] * one.total_B.cpu() for name, one in scores.items())
        parts = {part: value.cpu() for one in scores.values() for part, value in one.parts.items()}
        return Scores(
            total_B=total_B,
            parts=parts | {name: one.total_B.cpu() for name, one in scores.items()},
            device_seconds=sum(one.device_seconds for one in scores.values()),
        )
