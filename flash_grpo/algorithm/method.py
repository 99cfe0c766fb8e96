"""Hold an algorithm as one value. `diff conf/method/full.yaml conf/method/flash.yaml` is the paper."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flash_grpo.algorithm.plans import Plan
from flash_grpo.algorithm.types import FlowSchedule


@dataclass(frozen=True, kw_only=True)
class Method:
    """A mask (`plan`), a weight (`weigh`), and how rewards become a loss.

    name: what figures call it. rescale: weights to mean 1 over the optimizer update (release).
    initial_noise: "independent" draws x_T per rollout (paper), "shared" one per prompt. advantage: [P, G] -> [P, G].
    ratio_clip, kl_weight: see `loss.clipped_surrogate`.
    """

    name: str
    plan: Plan
    weigh: Callable[[FlowSchedule], torch.Tensor]
    advantage: Callable[[torch.Tensor], torch.Tensor]
    rescale: bool = True
    initial_noise: str = "independent"
    ratio_clip: float = 1e-3
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.initial_noise not in ("independent", "shared"):
            raise ValueError(f"method.initial_noise={self.initial_noise}: allowed are independent, shared")
        if not self.ratio_clip > 0:
            raise ValueError(f"method.ratio_clip={self.ratio_clip}: must be positive")
        if self.kl_weight < 0:
            raise ValueError(f"method.kl_weight={self.kl_weight}: must not be negative")
