"""Ranks: Accelerate forms the group, whoever started the processes; alone, every collective is the identity."""

import itertools
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(
    hours=2
)  # of a collective: one rank may wait for a lock, a file system, a slow load, or for rewards


_marks = itertools.count()  # all ranks make as many, in the same order


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

    def mark(self) -> "Mark":
        """Return a mark that any of these ranks can leave for the others. Every rank makes as many, in the same order."""
        store = dist.distributed_c10d._get_default_store() if self.world_size > 1 else None
        return Mark(store, f"flash_grpo/mark{next(_marks)}")

    def begin_vote(self, flag: bool) -> "Vote":
        """Begin to ask whether the flag is set on any rank, without waiting for the others."""
        answer = torch.tensor(int(flag), device=self.device)
        together = self.world_size > 1
        return Vote(answer, dist.all_reduce(answer, op=dist.ReduceOp.MAX, async_op=True) if together else None)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def _reduce(self, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world_size == 1:
            return tensor
        moved = tensor.detach().clone().to(self.device)
        dist.all_reduce(moved, op=operation)
        return moved.to(tensor.device)


@dataclass(frozen=True)
class Vote:
    """A question to all ranks that is under way."""

    answer: torch.Tensor
    work: dist.Work | None

    def complete(self) -> bool:
        """Return True once all ranks have answered, or one of them has died."""
        return self.work is None or self.work.is_completed()

    def result(self) -> bool:
        """Return the answer; raise where a rank has died."""
        if self.work is not None:
            self.work.wait()
        return bool(self.answer.item())


class Mark:
    """A mark in the process group's store, which ranks leave and find without a collective."""

    def __init__(self, store: dist.Store | None, name: str):
        self._store, self._name, self._known = store, name, False

    def leave(self) -> None:
        """Leave the mark for all ranks."""
        if self._store is not None and not self._known:
            self._store.set(self._name, "1")
        self._known = True

    def found(self) -> bool:
        """Return True once any rank has left the mark."""
        if not self._known and self._store is not None:
            self._known = self._store.check([self._name])
        return self._known
