"""Meter what a run spends: device-seconds by phase, forward and backward evaluations, FLOPs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flash_grpo.records.schema import Cost
from flash_grpo.training.ranks import Ranks

EVALUATION, SERVERS = "evaluation", "servers"


class Meter:
    """Phases are timed on this rank; `settle` adds them up over ranks, once an iteration.

    On an accelerator a rank costs wall time; on a CPU it costs the process's CPU time, so that runs side by side on one
    machine do not charge each other. `evaluation` is accounted apart and is no part of the cost.
    """

    def __init__(self, ranks: Ranks, flops_per_forward: float):
        self.ranks, self.flops_per_forward = ranks, flops_per_forward
        self.cost, self.evaluation_seconds = Cost(), 0.0
        self.seconds: dict[str, float] = {}
        self._device = {"work": 0.0, EVALUATION: 0.0, SERVERS: 0.0}
        self._forwards = self._backwards = 0

    @contextmanager
    def phase(self, name: str, only_completed: bool = False) -> Iterator[Callable[[], None]]:
        """Time the block, and charge it to `name`. Yields a function that charges what has passed so far.

        only_completed: if the block raises, leave out what has passed since the last charge: it will be done, and charged,
        again.
        """
        mark = [time.perf_counter(), self._device_clock()]

        def charge() -> None:
            wall, device = time.perf_counter(), self._device_clock()
            self.seconds[name] = self.seconds.get(name, 0.0) + wall - mark[0]
            self._device[EVALUATION if name == EVALUATION else "work"] += device - mark[1]
            mark[:] = wall, device

        try:
            yield charge
        except BaseException:
            if not only_completed:
                charge()
            raise
        charge()

    def count(self, forwards: int = 0, backwards: int = 0) -> None:
        """Count transformer evaluations of this rank, per sample."""
        self._forwards += forwards
        self._backwards += backwards

    def charge(self, device_seconds: float, name: str = "work") -> None:
        """Charge what other devices spent for this rank: a reward server's."""
        self._device[EVALUATION if name == EVALUATION else "work"] += device_seconds
        self._device[SERVERS] += device_seconds

    def state(self) -> dict[str, Any]:
        """Return what the run has spent up to the last settling, the same on every rank."""
        return {"cost": vars(self.cost), "evaluation_seconds": self.evaluation_seconds}

    def restore(self, state: dict[str, Any]) -> None:
        self.cost, self.evaluation_seconds = Cost(**state["cost"]), state["evaluation_seconds"]

    def unsettled(self) -> dict[str, Any]:
        """Return what this rank has spent since the last settling."""
        return {
            "seconds": self.seconds,
            "device": self._device,
            "forwards": self._forwards,
            "backwards": self._backwards,
        }

    def restore_unsettled(self, unsettled: dict[str, Any]) -> None:
        self.seconds, self._device = unsettled["seconds"], unsettled["device"]
        self._forwards, self._backwards = unsettled["forwards"], unsettled["backwards"]

    def settle(self) -> dict[str, float]:
        """Add what all ranks spent since the last call to the cost; return this rank's wall seconds by phase."""
        mine = [*(self._device[name] for name in ("work", EVALUATION, SERVERS)), self._forwards, self._backwards]
        work, evaluation, servers, *counts = self.ranks.sum(torch.tensor(mine, dtype=torch.float64)).tolist()
        forwards, backwards = map(int, counts)
        self.cost = Cost(
            device_seconds=self.cost.device_seconds + work,
            pflop=self.cost.pflop + 1e-15 * (forwards + 2 * backwards) * self.flops_per_forward,
            forward_evaluations=self.cost.forward_evaluations + forwards,
            backward_evaluations=self.cost.backward_evaluations + backwards,
            server_seconds=self.cost.server_seconds + servers,
        )
        self.evaluation_seconds += evaluation
        seconds, self.seconds = self.seconds, {}
        self._device, self._forwards, self._backwards = dict.fromkeys(self._device, 0.0), 0, 0
        return seconds

    def _device_clock(self) -> float:
        if self.ranks.device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()
