"""Say which denoising steps of which rollout are stochastic, and therefore trained: the methods' first half.

A plan is `(batch, num_steps, seed) -> sde_mask_BT`. Plans differ in how wide their band is and in *the key it is drawn by*:
iso-temporal grouping is nothing but leaving the sibling out of the key.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from flash_grpo.algorithm import keyed, ranges
from flash_grpo.algorithm.types import PromptBatch


class Plan(Protocol):
    def __call__(self, batch: PromptBatch, num_steps: int, seed: int) -> torch.Tensor:
        """Return the mask, bool [B, T]."""

    def candidates(self, num_steps: int) -> torch.Tensor:
        """Return which steps may be stochastic, bool [T]; ValueError, naming the key, if the plan does not fit the schedule."""


@dataclass(frozen=True, kw_only=True)
class FullTrajectory:
    """Make every step stochastic (Flow-GRPO). Its release leaves the last one untrained and deterministic: `skip_last`."""

    skip_last: bool = True

    def __post_init__(self) -> None:
        ranges.truth("method.plan.skip_last", self.skip_last)

    def candidates(self, num_steps: int) -> torch.Tensor:
        return _band(torch.zeros(1), num_steps - self.skip_last, num_steps)[0]

    def __call__(self, batch: PromptBatch, num_steps: int, seed: int) -> torch.Tensor:
        return self.candidates(num_steps).expand(len(batch), -1)


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Make `width` adjacent steps stochastic, all of them among the candidates first_step..last_step.

    move="random" (Flow-GRPO-Fast): the start is drawn once per rank-batch, so groups mix steps. Our rank-batch is one
    rollout of every prompt (all rollouts with one sibling index), which keeps draws independent of the number of ranks.
    move="slide" (MixGRPO): one window for everybody; it moves on by `stride` every `every` iterations and wraps around.
    """

    width: int
    first_step: int
    last_step: int
    move: str = "random"
    stride: int = 1
    every: int = 25

    def __post_init__(self) -> None:
        for name in ("width", "stride", "every"):
            ranges.whole(f"method.plan.{name}", getattr(self, name))
        ranges.one_of("method.plan.move", self.move, ("random", "slide"))
        _check_candidates(self.first_step, self.last_step)
        if self.width > self.last_step - self.first_step + 1:
            raise ValueError(
                f"method.plan.width={self.width}: must be at most {self.last_step - self.first_step + 1}, the candidates "
                f"first_step={self.first_step} to last_step={self.last_step}"
            )

    def candidates(self, num_steps: int) -> torch.Tensor:
        return _candidates(self.first_step, self.last_step, num_steps)

    def __call__(self, batch: PromptBatch, num_steps: int, seed: int) -> torch.Tensor:
        return _band(
            torch.tensor([self._start(batch, sibling, seed) for sibling in batch.sibling_B.tolist()]),
            self.width,
            num_steps,
        )

    def _start(self, batch: PromptBatch, sibling: int, seed: int) -> int:
        last_start = self.last_step - self.width + 1
        if self.move == "slide":
            moved = (batch.iteration - 1) // self.every * self.stride
            return self.first_step + moved % (last_start - self.first_step + 1)
        return keyed.integer(self.first_step, last_start, seed, "plan", batch.iteration, "sibling", sibling)


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """Make one step of each rollout stochastic, among the candidates first_step..last_step (Flash-GRPO).

    shared_by="prompt" is iso-temporal grouping: all rollouts of a prompt share the step. shared_by="rollout" draws one for
    each. draw="iid" (release) draws independently; "stratified" (paper) spreads the units evenly over the candidates.
    """

    first_step: int
    last_step: int
    shared_by: str = "prompt"
    draw: str = "iid"

    def __post_init__(self) -> None:
        _check_candidates(self.first_step, self.last_step)
        ranges.one_of("method.plan.shared_by", self.shared_by, ("prompt", "rollout"))
        ranges.one_of("method.plan.draw", self.draw, ("iid", "stratified"))

    def candidates(self, num_steps: int) -> torch.Tensor:
        return _candidates(self.first_step, self.last_step, num_steps)

    def __call__(self, batch: PromptBatch, num_steps: int, seed: int) -> torch.Tensor:
        units = [self._unit(batch, row) for row in range(len(batch))]
        drawn = {unit: self._position(batch, unit, seed) for unit in set(units)}
        candidates = self.last_step - self.first_step + 1
        start_B = torch.tensor([self.first_step + int(drawn[unit] * candidates) for unit in units])
        return _band(start_B, 1, num_steps)

    def _unit(self, batch: PromptBatch, row: int) -> tuple[int, ...]:
        prompt, sibling = int(batch.prompt_B[row]), int(batch.sibling_B[row])
        return (prompt,) if self.shared_by == "prompt" else (prompt, sibling)

    def _position(self, batch: PromptBatch, unit: tuple[int, ...], seed: int) -> float:
        """Return where in [0, 1) of the candidates the unit's step lies."""
        inside = keyed.uniform(seed, "plan", batch.iteration, *unit)
        if self.draw == "iid":
            return inside
        siblings = batch.group_size if self.shared_by == "rollout" else 1
        units = batch.num_prompts * siblings
        index = unit[0] * siblings + (unit[1] if len(unit) > 1 else 0)
        return (keyed.permutation(units, seed, "strata", batch.iteration)[index] + inside) / units


def _band(start_B: torch.Tensor, width: int, num_steps: int) -> torch.Tensor:
    step_T = torch.arange(num_steps)
    return (step_T >= start_B[:, None]) & (step_T < start_B[:, None] + width)


def _check_candidates(first: int, last: int) -> None:
    ranges.whole("method.plan.first_step", first, at_least=0)
    ranges.whole("method.plan.last_step", last, at_least=0)
    if first > last:
        raise ValueError(f"method.plan.first_step={first}: must not exceed last_step={last}")


def _candidates(first: int, last: int, num_steps: int) -> torch.Tensor:
    if last >= num_steps:
        raise ValueError(f"method.plan.last_step={last}: must be less than schedule.num_steps={num_steps}")
    return _band(torch.tensor([first]), last - first + 1, num_steps)[0]
