"""Ranks: Accelerate forms the group, whoever started the processes; alone, every collective is the identity."""

import itertools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(minutes=30)  # of a collective: one rank may wait for a lock, a file system or a slow load


_meetings = itertools.count()  # all ranks make as many, in the same order


class Ranks:
    """This process among the run's processes. Sums of tensors that are zero elsewhere stand in for gathers: they are exact."""

    def __init__(self, device: str = "cpu"):
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        self.rank, self.world_size, self.device = state.process_index, state.num_processes, state.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        """Return True, on every rank, if the flag is set on any."""
        return bool(self.max(torch.tensor(int(flag))).item())

    def from_main(self, value: Any) -> Any:
        """Return the main rank's value, on every rank."""
        return self.from_rank(0, value)

    def from_rank(self, rank: int, value: Any) -> Any:
        """Return that rank's value, on every rank."""
        told = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(told, src=rank, device=self.device)
        return told[0]

    def meeting(self) -> "Meeting":
        """Return a place where these ranks meet again and again. Every rank makes as many, in the same order."""
        store = dist.distributed_c10d._get_default_store() if self.world_size > 1 else None
        return Meeting(store, next(_meetings), self.world_size)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def _reduce(self, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world_size == 1:
            return tensor
        moved = tensor.detach().clone().to(self.device)
        dist.all_reduce(moved, op=operation)
        return moved.to(tensor.device)


class Meeting:
    """Where ranks find each other without a collective: a mark and a count in the process group's store.

    A rank that waits here can be asked to stop, and no time-out of a collective runs meanwhile.
    """

    def __init__(self, store: dist.Store | None, number: int, world_size: int):
        self._store, self._name, self._world_size = store, f"flash_grpo/meeting{number}", world_size
        self._round = 0
        self._marked = False

    def mark(self) -> None:
        """Ask all ranks to come."""
        if self._store is not None and not self._marked:
            self._store.set(f"{self._name}/mark", "1")
        self._marked = True

    def marked(self) -> bool:
        """Return True once any rank has marked."""
        if not self._marked and self._store is not None:
            self._marked = self._store.check([f"{self._name}/mark"])
        return self._marked

    def arrive(self) -> None:
        """Say that this rank is here, for the next round."""
        self._round += 1
        if self._store is not None:
            self._store.add(self._key, 1)

    def complete(self) -> bool:
        """Return True once all ranks are here in this round."""
        return self._store is None or self._store.add(self._key, 0) >= self._world_size

    @property
    def _key(self) -> str:
        return f"{self._name}/round{self._round}"
