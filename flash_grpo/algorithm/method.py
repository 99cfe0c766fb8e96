"""Hold an algorithm as one value. `diff conf/method/full.yaml conf/method/flash.yaml` is the paper."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.plans import FullTrajectory, OneStep, Plan, SlidingWindow
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.algorithm.weighting import uniform


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
        ranges.text("method.name", self.name)
        ranges.truth("method.rescale", self.rescale)
        ranges.one_of("method.initial_noise", self.initial_noise, ("independent", "shared"))
        ranges.number("method.ratio_clip", self.ratio_clip, above=0)
        ranges.number("method.kl_weight", self.kl_weight, at_least=0)
        for part in ("plan", "weigh", "advantage"):
            if not callable(getattr(self, part)):
                raise ValueError(
                    f"method.{part}={ranges.shown(getattr(self, part))}: must be callable, see conf/method"
                )
        self._refuse_a_name_of_another()

    def _refuse_a_name_of_another(self) -> None:
        """Raise ValueError if figures would call this method by a name that stands for something else."""
        if not (meaning := MEANINGS.get(self.name)):
            return
        weighs_equally = (self.weigh.func if isinstance(self.weigh, partial) else self.weigh) is uniform
        here = {
            "plan": type(self.plan),
            "shared_by": getattr(self.plan, "shared_by", None),
            "weighs_equally": weighs_equally,
            "initial_noise": self.initial_noise,
        }
        if differing := [key for key, value in meaning.items() if here[key] != value]:
            raise ValueError(
                f"method.name={self.name}: this name stands for another method (it differs in {', '.join(differing)}); "
                "choose the method and the ablation that belong together, or give this one a name of its own"
            )


_ONE_STEP = {"plan": OneStep, "shared_by": "prompt", "weighs_equally": False}
MEANINGS: dict[str, dict[str, Any]] = {
    "full": {"plan": FullTrajectory},
    "window": {"plan": SlidingWindow},
    "flash": _ONE_STEP,
    "no_rectification": _ONE_STEP | {"weighs_equally": True},
    "no_iso_temporal": _ONE_STEP | {"shared_by": "rollout"},
    "naive_one_step": _ONE_STEP | {"shared_by": "rollout", "weighs_equally": True},
    "shared_noise": _ONE_STEP | {"initial_noise": "shared"},
    "short_branches": _ONE_STEP | {"initial_noise": "shared"},
}
"""What the names in conf/method and ablations/ stand for. Other settings of a method may vary under its name."""
