"""Hold an algorithm as one value. `diff conf/method/full.yaml conf/method/flash.yaml` is the paper."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.needs import Needs
from flash_grpo.algorithm.noise import Tree
from flash_grpo.algorithm.plans import FullTrajectory, OneStep, Plan, SlidingWindow
from flash_grpo.algorithm.targets import Target, needs_of, sde_logprob
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.algorithm.weighting import OF_THE_SDE, uniform


@dataclass(frozen=True, kw_only=True)
class Method:
    """A mask (`plan`), a weight (`weigh`), a `target`, and how rewards become a loss.

    name: what figures call it. rescale: weights to mean 1 over the optimizer update (release).
    initial_noise: "independent" draws x_T per rollout (paper), "shared" one per prompt, a number in a neighbourhood of that
    radius (Neighbor GRPO). tree: until where rollouts that share x_T also share the SDE's noise; None parts them at the first
    stochastic step. advantage: [P, G] -> [P, G]. target: what is trained, see `targets`; it decides which of these settings
    mean something. ratio_clip, kl_weight: see `loss`; null is no clip.
    """

    name: str
    plan: Plan
    weigh: Callable[[FlowSchedule], torch.Tensor]
    advantage: Callable[[torch.Tensor], torch.Tensor]
    rescale: bool = True
    initial_noise: str | float = "independent"
    ratio_clip: float | None = 1e-3
    kl_weight: float = 0.0
    target: Target = sde_logprob
    tree: Tree | None = None

    def __post_init__(self) -> None:
        ranges.text("method.name", self.name)
        ranges.truth("method.rescale", self.rescale)
        _check_initial_noise(self.initial_noise)
        ranges.number("method.ratio_clip", self.ratio_clip, above=0, null=True)
        ranges.number("method.kl_weight", self.kl_weight, at_least=0)
        self._refuse_parts_of_another_kind()
        self._refuse_what_means_nothing()
        self._refuse_a_name_of_another()

    def _refuse_parts_of_another_kind(self) -> None:
        if not isinstance(self.tree, Tree | None):
            tree = ranges.shown(self.tree)
            raise ValueError(f"method.tree={tree}: must be null or a flash_grpo.algorithm.noise.Tree")
        for name in ("plan", "weigh", "advantage", "target"):
            if not callable(part := getattr(self, name)):
                raise ValueError(f"method.{name}={ranges.shown(part)}: must be callable, see conf/method")

    @property
    def needs(self) -> Needs:
        """Return what the target needs."""
        needs = needs_of(self.target)
        if needs is None:
            raise ValueError(
                f"method.target={_name(self.target)}: does not say what it needs, see algorithm/targets.py"
            )
        return needs

    def check_plan(self, num_steps: int) -> None:
        """Raise ValueError if the target compares siblings at one step and the plan gives them several or different ones."""
        layout = Layout(num_prompts=2, group_size=4)
        for iteration in range(1, 9) if self.needs.siblings == "x_next" else ():
            mask_BT = self.plan(layout.batch(iteration, ["", ""], 0), num_steps, 0)
            first_BT = mask_BT[torch.arange(8) // 4 * 4]
            if (mask_BT != first_BT).any() or (mask_BT.sum(1) != 1).any():
                raise ValueError(
                    f"method.plan: method.target={_name(self.target)} compares siblings at one step, and this plan does not "
                    "train exactly one, the same for all rollouts of a prompt; use plans.OneStep with shared_by=prompt"
                )

    def _refuse_what_means_nothing(self) -> None:
        """Raise ValueError for settings that the target does not use, or must not be used with; table: see `targets`."""
        needs, target = self.needs, f"method.target={_name(self.target)}"
        if not needs.stochastic and self.initial_noise == "shared":
            raise ValueError(
                f"method.initial_noise=shared: {target} has no stochastic step, so all rollouts of a prompt would be equal; "
                "use independent, or the radius of a neighbourhood, as in method.initial_noise=0.3"
            )
        if self.tree and not (needs.stochastic and self.initial_noise == "shared"):
            raise ValueError(
                "method.tree: parts rollouts that share x_T at their stochastic steps; it needs method.initial_noise=shared "
                f"(here {ranges.shown(self.initial_noise)}) and a target with stochastic steps (here {_name(self.target)})"
            )
        if not needs.stochastic and _function(self.weigh) in OF_THE_SDE:
            raise ValueError(
                f"method.weigh={_name(self.weigh)}: is made of the SDE's step, and {target} has none; use "
                "flash_grpo.algorithm.weighting.uniform"
            )
        if not needs.ratio and self.ratio_clip is not None:
            raise ValueError(f"method.ratio_clip={self.ratio_clip}: {target} has no ratio to clip; set it to null")
        if needs.restraint and self.ratio_clip is None and not self.kl_weight:
            raise ValueError(
                f"method.ratio_clip=null: {target} needs it or method.kl_weight, without which nothing bounds it"
            )

    def _meaning(self) -> dict[str, Any]:
        """Return what `MEANINGS` says of a name, of this method."""
        return {
            "target": _name(self.target),
            "plan": type(self.plan),
            "shared_by": getattr(self.plan, "shared_by", None),
            "weighs_equally": _function(self.weigh) is uniform,
            "initial_noise": self.initial_noise,
            "tree": self.tree is not None,
        }

    def _refuse_a_name_of_another(self) -> None:
        """Raise ValueError if figures would call this method by a name that stands for something else."""
        if not (meaning := MEANINGS.get(self.name)):
            return
        here = self._meaning()
        if differing := [key for key, value in meaning.items() if here[key] != value]:
            raise ValueError(
                f"method.name={self.name}: this name stands for another method (it differs in {', '.join(differing)}); "
                "choose the method and the ablation that belong together, or give this one a name of its own"
            )


def _check_initial_noise(value: Any) -> None:
    if isinstance(value, float):
        ranges.number("method.initial_noise", value, above=0, below=1)
    elif value not in ("independent", "shared"):
        shown = ranges.shown(value)
        raise ValueError(f"method.initial_noise={shown}: allowed are independent, shared, or a number between 0 and 1")


def _function(part: Any) -> Any:
    return part.func if isinstance(part, partial) else part


def _name(part: Any) -> str:
    return getattr(_function(part), "__name__", type(part).__name__)


_SDE = {"target": "sde_logprob", "tree": False}
_FULL = _SDE | {"plan": FullTrajectory}
_ONE_STEP = _SDE | {"plan": OneStep, "shared_by": "prompt", "weighs_equally": False}
MEANINGS: dict[str, dict[str, Any]] = {
    "full": _FULL,
    "window": _SDE | {"plan": SlidingWindow},
    "flash": _ONE_STEP,
    "no_rectification": _ONE_STEP | {"weighs_equally": True},
    "no_iso_temporal": _ONE_STEP | {"shared_by": "rollout"},
    "naive_one_step": _ONE_STEP | {"shared_by": "rollout", "weighs_equally": True},
    "shared_noise": _ONE_STEP | {"initial_noise": "shared"},
    "short_branches": _ONE_STEP | {"initial_noise": "shared"},
    "dancegrpo": _FULL | {"weighs_equally": True, "initial_noise": "shared"},
    "mixgrpo": _SDE | {"plan": SlidingWindow, "weighs_equally": True, "initial_noise": "shared"},
    "flow_cps": _FULL | {"weighs_equally": True},
    "grpo_guard": _FULL | {"weighs_equally": False},
    "pcpo": _FULL | {"weighs_equally": False},
    "longcat": _ONE_STEP,
    "tempflow": _ONE_STEP | {"initial_noise": "shared"},
    "branchgrpo": _FULL | {"weighs_equally": True, "initial_noise": "shared", "tree": True},
    "finite_difference": {"target": "finite_difference"},
    "neighbor_grpo": {"target": "neighbour", "plan": OneStep, "shared_by": "prompt"},
    "awm": {"target": "forward_matching"},
    "diffusion_nft": {"target": "implicit_pair"},
}
"""What the names in conf/method and ablations/ stand for. Other settings of a method may vary under its name."""
