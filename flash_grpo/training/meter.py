"""Meter what a run spends: device-seconds by phase, evaluations, decodes, scored videos, FLOPs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flash_grpo.algorithm.cost import pflop
from flash_grpo.algorithm.types import UnitFlops
from flash_grpo.records.schema import COST_PHASES, Cost
from flash_grpo.training.ranks import Ranks

EVALUATION, SERVERS = "evaluation", "servers"
COUNTS = ("forwards", "backwards", "decodes", "scored")


class Meter:
    """Phases are timed on this rank; `settle` adds them up over ranks, once an iteration.

    On an accelerator a rank costs wall time; on a CPU it costs the process's CPU time, so that runs side by side on one
    machine do not charge each other. `evaluation` is accounted apart and is no part of the cost.
    """

    def __init__(self, ranks: Ranks, flops: UnitFlops):
        self.ranks, self.flops = ranks, flops
        self.cost, self.evaluation_seconds = Cost(), 0.0
        self.seconds: dict[str, float] = {}
        self._device = dict.fromkeys((*COST_PHASES, EVALUATION, SERVERS), 0.0)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._charge_outer: Callable[[bool], None] = lambda time_passed: None

    @contextmanager
    def phase(self, name: str, only_completed: bool = False) -> Iterator[Callable[[], None]]:
        """Time the block, and charge it to `name`. Yields a function that charges what has passed so far.

        A phase in another interrupts it: its time is not charged to the other. only_completed: if the block raises, leave
        out what has passed since the last charge: it will be done, and charged, again.
        """
        self._charge_outer(True)
        mark = [time.perf_counter(), self._device_clock()]
        outer = self._charge_outer

        def charge(time_passed: bool = True) -> None:
            wall, device = time.perf_counter(), self._device_clock()
            if time_passed:
                self.seconds[name] = self.seconds.get(name, 0.0) + wall - mark[0]
                self._device[name] += device - mark[1]
            mark[:] = wall, device

        self._charge_outer, completed = charge, False
        try:
            yield charge
            completed = True
        finally:
            charge(completed or not only_completed)
            self._charge_outer = outer
            outer(False)

    def count(self, **counts: int) -> None:
        """Count what this rank has computed, by the names of COUNTS, evaluations per sample."""
        for name, count in counts.items():
            self._counts[name] += count

    def charge(self, device_seconds: float, name: str = "reward") -> None:
        """Charge what other devices spent for this rank: a reward server's."""
        self._device[name] += device_seconds
        self._device[SERVERS] += device_seconds

    def state(self) -> dict[str, Any]:
        """Return what the run has spent up to the last settling, the same on every rank."""
        return {"cost": vars(self.cost), "evaluation_seconds": self.evaluation_seconds}

    def restore(self, state: dict[str, Any]) -> None:
        self.cost, self.evaluation_seconds = Cost(**state["cost"]), state["evaluation_seconds"]

    def unsettled(self) -> dict[str, Any]:
        """Return what this rank has spent since the last settling."""
        return {"seconds": self.seconds, "device": self._device, "counts": self._counts}

    def restore_unsettled(self, unsettled: dict[str, Any]) -> None:
        self.seconds, self._device = unsettled["seconds"], unsettled["device"]
        self._counts = unsettled["counts"]

    def settle(self) -> dict[str, float]:
        """Add what all ranks spent since the last call to the cost; return this rank's wall seconds by phase."""
        mine = torch.tensor([*self._device.values(), *self._counts.values()], dtype=torch.float64)
        spent = dict(zip((*self._device, *self._counts), self.ranks.sum(mine).tolist(), strict=True))
        self.cost = added(self.cost, spent, self.flops)
        self.evaluation_seconds += spent[EVALUATION]
        seconds, self.seconds = self.seconds, {}
        self._device, self._counts = dict.fromkeys(self._device, 0.0), dict.fromkeys(COUNTS, 0)
        return seconds

    def _device_clock(self) -> float:
        if self.ranks.device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()


def added(cost: Cost, spent: dict[str, float], flops: UnitFlops) -> Cost:
    """Return the cost after `spent`: device-seconds by phase, and the counts of `COUNTS`."""
    forwards, backwards, decodes, scored = (int(spent[name]) for name in COUNTS)
    transformer = pflop(flops, forwards, backwards)
    return Cost(
        device_seconds=cost.device_seconds + sum(spent[phase] for phase in COST_PHASES),
        pflop=cost.pflop + transformer,
        forward_evaluations=cost.forward_evaluations + forwards,
        backward_evaluations=cost.backward_evaluations + backwards,
        server_seconds=cost.server_seconds + spent[SERVERS],
        recomputed_evaluations=cost.recomputed_evaluations + (backwards if flops.recompute else 0),
        decodes=cost.decodes + decodes,
        scored_videos=cost.scored_videos + scored,
        pflop_all=cost.pflop_all + transformer + 1e-15 * (decodes * flops.decode + scored * flops.score),
        **{f"{phase}_seconds": getattr(cost, f"{phase}_seconds") + spent[phase] for phase in COST_PHASES},
    )
