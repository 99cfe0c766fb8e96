"""What has been done of the iteration under way, so that a run can leave in the middle of it and go on there.

An iteration of a large model takes minutes, longer than a preemption's grace time. All randomness is keyed, so a piece of
work whose result is known need not be done again: a run that leaves loses at most the piece under way, one micro-batch.
A micro-batch of rollouts may itself take longer than the grace time, so it is given up between two denoising steps.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.training.ranks import Ranks

Result = TypeVar("Result")
POLL_S = 0.05


class Leave(Exception):
    """Asked to stop, or without a reward, on any rank. Everything that the journal holds is done."""


class Journal:
    """Results by name, on this rank. All ranks come to the same pieces in the same order, so they leave at the same one.

    asked: whether this rank was asked to stop. pieces: how many were done since the run began; grows, whatever happens.
    """

    def __init__(self, ranks: Ranks):
        self.ranks, self.asked = ranks, lambda: False
        self.failure: RewardError | None = None
        self.done: dict[str, Any] = {}
        self.pieces = 0

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, done now unless it was before. Pieces inside it are named `name/...` and forgotten then."""
        if name not in self.done:
            self.leave_if_asked()
            result = work()
            self.done = {other: known for other, known in self.done.items() if not other.startswith(f"{name}/")}
            self.done[name] = result
            self.pieces += 1
        return self.done[name]

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until all ranks are ready, for something that others compute."""
        while self.ranks.any(not self.tried(ready)):
            self.leave_if_asked()
            time.sleep(POLL_S)

    def tried(self, ready: Callable[[], bool]) -> bool:
        """Whether it is ready; never, once it has failed here, and then all ranks leave at the next piece."""
        if self.failure is None:
            try:
                return ready()
            except RewardError as error:
                self.failure = error
        return False

    def leave_if_asked(self) -> None:
        if self.ranks.any(self.asked() or self.failure is not None):
            raise Leave

    def raise_failure(self) -> None:
        """On every rank, where one has failed: what the last of those said."""
        failed = int(self.ranks.max(torch.tensor(-1 if self.failure is None else self.ranks.rank)))
        if failed >= 0:
            told = self.ranks.from_rank(failed, str(self.failure))
            raise self.failure or RewardErrorElsewhere(f"{told} (rank {failed} of {self.ranks.world_size})")


class RewardErrorElsewhere(RewardError):
    """Another rank's, of which this one was told."""
