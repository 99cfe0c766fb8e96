"""Step the optimizer with the gradients of all ranks."""

from dataclasses import dataclass, field
from typing import Any

import torch

from flash_grpo.algorithm.protocols import Policy
from flash_grpo.training.anneal import Anneal
from flash_grpo.training.ema import EMA
from flash_grpo.training.gradients import clipped, trained_parameters
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks


@dataclass(kw_only=True)
class Stepper:
    """Makes optimizer steps of accumulated gradients. optimizer_steps: how many since the run began."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    ema: EMA
    ranks: Ranks
    meter: Meter
    max_gradient_norm: float
    anneal: Anneal = field(default_factory=Anneal)
    optimizer_steps: int = 0

    def __post_init__(self) -> None:
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def apply_gradients(self, trained_E: torch.Tensor) -> tuple[float, dict[str, float]]:
        """Sum gradients over ranks, clip, step, average into the EMA; return the norm before clipping, and each expert's.

        trained_E: how many transitions of all ranks each expert has in this optimizer step. One that has none is left as it
        is, its optimizer state too, on one rank as on several. A policy's only expert has no norm of its own.
        """
        norm, norms = clipped(trained_parameters(self.policy, trained_E), self.ranks, self.max_gradient_norm)
        self._set_rates()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        self.ema.update(self.optimizer_steps)
        return norm, norms

    def _set_rates(self) -> None:
        """Set the learning rates by what the run had spent when the iteration began."""
        factor = self.anneal.factor(self.meter.cost.pflop)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def state(self) -> dict[str, Any]:
        """Return what the next optimizer step depends on besides the parameters, the same on every rank."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state(),
            "optimizer_steps": self.optimizer_steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back a `state()`, and the parameters that a checkpoint holds beside it."""
        self.ema.load(state["parameters"])
        self.ema.restore(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer_steps = state["optimizer_steps"]
