"""Deterministic steps of the probability-flow ODE. A solver is `(x, v, history, schedule, step) -> x_next`.

x and v are [S, C, F, H, W]. `history` holds the step before, for those states that have one; a state that a stochastic step has
just made has none.
"""

import math
from dataclasses import dataclass, replace

import torch

from flash_grpo.algorithm.sde import ode_step
from flash_grpo.algorithm.transitions import gathered
from flash_grpo.algorithm.types import FlowSchedule


@dataclass(frozen=True, kw_only=True)
class History:
    """The previous step of each state: where it began, and its velocity there."""

    v_SCFHW: torch.Tensor
    known_S: torch.Tensor
    """bool: False for a state that has just been made by a stochastic step; its previous step must not be used."""

    x_SCFHW: torch.Tensor = torch.empty(0)  # noqa: RUF009 -- never written to; checkpoints of earlier versions lack it

    def of(self, parent_S: torch.Tensor, stochastic_S: torch.Tensor) -> "History":
        """Return the history of new states: that of their parents, forgotten where the step was stochastic."""
        return replace(
            self,
            v_SCFHW=gathered(self.v_SCFHW, parent_S),
            known_S=self.known_S[parent_S] & ~stochastic_S,
            x_SCFHW=gathered(self.x_SCFHW, parent_S),
        )


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


def dpmpp_2m(
    x: torch.Tensor, v: torch.Tensor, history: History | None, schedule: FlowSchedule, step: int
) -> torch.Tensor:
    """Take a step of DPM-Solver++ 2M (arXiv 2211.01095, midpoint), as diffusers' DPMSolverMultistepScheduler on flow sigmas.

    To first order it is the Euler step; the second adds half of `_x_0_share` of x̂_0's change since the step before. A state
    without a previous step, and the step to sigma = 0, are first order.
    """
    x_next = euler(x, v, history, schedule, step)
    if history is None or not (share := _x_0_share(schedule, step)):
        return x_next
    sigma, sigma_before = schedule.sigma_S[step], schedule.sigma_S[step - 1]
    change = (x - sigma * v) - (history.x_SCFHW - sigma_before * history.v_SCFHW)
    known = history.known_S.to(x.device).reshape(-1, 1, 1, 1, 1)
    return torch.where(known, x_next + 0.5 * share * change, x_next)


def _x_0_share(schedule: FlowSchedule, step: int) -> float:
    """Return (α' - α·σ'/σ)·h/h_before, h the step's length in log(α/σ), α = 1 - σ; 0 where a length is infinite."""
    before, now, after = (float(sigma) for sigma in schedule.sigma_S[step - 1 : step + 2])
    if after <= 0 or before >= 1:
        return 0.0
    lengths = math.log((1 - after) * now / (after * (1 - now))) / math.log((1 - now) * before / (now * (1 - before)))
    return (1 - after - (1 - now) * after / now) * lengths
