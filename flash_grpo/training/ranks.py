"""Ranks: Accelerate forms the group, whoever started the processes; alone, every collective is the identity."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(minutes=30)  # of a collective: one rank may wait for a lock, a file system or a slow load


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
        """The same answer on every rank."""
        return bool(self.max(torch.tensor(int(flag))).item())

    def from_main(self, value: Any) -> Any:
        """The main rank's value, on every rank."""
        return self.from_rank(0, value)

    def from_rank(self, rank: int, value: Any) -> Any:
        """That rank's value, on every rank."""
        told = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(told, src=rank, device=self.device)
        return told[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def _reduce(self, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        if self.world_size == 1:
            return tensor
        moved = tensor.detach().clone().to(self.device)
        dist.all_reduce(moved, op=operation)
        return moved.to(tensor.device)
