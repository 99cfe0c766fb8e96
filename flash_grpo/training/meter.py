"""What a run spends: device-seconds by phase, forward and backward evaluations, FLOPs."""

import time
from collections.abc import Iterator
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
    def phase(self, name: str, whole: bool = False) -> Iterator[None]:
        """whole: what is given up in the middle, to be done again, does not count."""
        wall, device, done = time.perf_counter(), self._device_clock(), False
        try:
            yield
            done = True
        finally:
            if done or not whole:
                spent = self._device_clock() - device
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - wall
                self._device[EVALUATION if name == EVALUATION else "work"] += spent

    def count(self, forwards: int = 0, backwards: int = 0) -> None:
        """Transformer evaluations of this rank, per sample."""
        self._forwards += forwards
        self._backwards += backwards

    def charge(self, device_seconds: float, name: str = "work") -> None:
        """What other devices spent for this rank: a reward server's."""
        self._device[EVALUATION if name == EVALUATION else "work"] += device_seconds
        self._device[SERVERS] += device_seconds

    def unsettled(self) -> dict[str, Any]:
        """What this rank spent since the last settling, to be put back by `resume`."""
        return {
            "seconds": self.seconds,
            "device": self._device,
            "forwards": self._forwards,
            "backwards": self._backwards,
        }

    def resume(self, unsettled: dict[str, Any]) -> None:
        self.seconds, self._device = unsettled["seconds"], unsettled["device"]
        self._forwards, self._backwards = unsettled["forwards"], unsettled["backwards"]

    def settle(self) -> dict[str, float]:
        """Adds what all ranks spent since the last call to the cost; returns this rank's wall seconds by phase."""
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
