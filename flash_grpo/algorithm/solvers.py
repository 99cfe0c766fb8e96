"""Deterministic steps of the probability-flow ODE. A solver is `(x, v, history, schedule, step) -> x_next`.

x and v are [S, C, F, H, W]. `history` holds the velocities of the step before, for those states that have one.
"""

from dataclasses import dataclass, replace

import torch

from flash_grpo.algorithm.sde import ode_step
from flash_grpo.algorithm.types import FlowSchedule


@dataclass(frozen=True, kw_only=True)
class History:
    """The previous step's velocity of each state."""

    v_SCFHW: torch.Tensor
    known_S: torch.Tensor
    """bool: False for a state that has just been made by a stochastic step; its velocity must not be used."""

    def of(self, parent_S: torch.Tensor, stochastic_S: torch.Tensor) -> "History":
        """Return the history of new states: that of their parents, forgotten where the step was stochastic."""
        return replace(self, v_SCFHW=self.v_SCFHW[parent_S], known_S=self.known_S[parent_S] & ~stochastic_S)


def euler(x: torch.Tensor, v: torch.Tensor, history: History | None, schedule: FlowSchedule, step: int) -> torch.Tensor:
    """Take an Euler step, as the release does."""
    return ode_step(x, v, schedule.dt_T[step])


def ab2(x: torch.Tensor, v: torch.Tensor, history: History | None, schedule: FlowSchedule, step: int) -> torch.Tensor:
    """Take a second-order Adams-Bashforth step of variable size: v + ½·(dt / dt before)·(v - v before).

    A state without a previous velocity takes an Euler step.
    """
    if history is None:
        return euler(x, v, history, schedule, step)
    slope = 0.5 * schedule.dt_T[step] / schedule.dt_T[step - 1] * (v - history.v_SCFHW)
    known = history.known_S.to(x.device).reshape(-1, 1, 1, 1, 1)
    return ode_step(x, torch.where(known, v + slope, v), schedule.dt_T[step])
