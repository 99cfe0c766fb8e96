"""Remember what has been done of the iteration under way, so that a run can leave in the middle of it and go on there.

An iteration of a large model takes minutes, longer than a preemption's grace time. All randomness is keyed, so a piece of
work whose result is known need not be done again. Work that ranks do each by itself stands in a `section`, and its pace,
see `pace`, says when the ranks learn that one of them was asked to stop.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.training.pace import Apart, Leave, Lockstep
from flash_grpo.training.ranks import Ranks

Result = TypeVar("Result")


class RewardErrorElsewhere(RewardError):
    """A reward has failed on another rank."""


class Journal:
    """Results by name, on this rank, and when to leave.

    asked: returns True once this rank was asked to stop. together: velocities need all ranks. pieces: how many were done
    since the run began; never falls.
    """

    def __init__(self, ranks: Ranks, together: bool = False):
        self.ranks = ranks
        self.asked: Callable[[], bool] = lambda: False
        self.failure: RewardError | None = None
        self.done: dict[str, Any] = {}
        self.pieces = 0
        self.pace = (Lockstep if together else Apart)(ranks, self._leaving)

    # -- results ---------------------------------------------------------------------------------------------------

    def resumable(self, name: str, work: Callable[[], Result]) -> Result:
        """Return `work()`'s result, or the one that an earlier start of this run has saved.

        What `work` noted as `name/…` is dropped once `name` itself is there.
        """
        if name not in self.done:
            result = work()
            self.done = {other: known for other, known in self.done.items() if not other.startswith(f"{name}/")}
            self.note(name, result)
        return self.done[name]

    def note(self, name: str, result: Any) -> None:
        """Keep a result, in place of an earlier one of this name."""
        self.done[name] = result
        self.pieces += 1

    def state(self) -> dict[str, Any]:
        """Return what every rank would say the same of: how many pieces were done."""
        return {"pieces": self.pieces}

    def restore(self, state: dict[str, Any]) -> None:
        self.pieces = state["pieces"]

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _leaving(self) -> bool:
        return self.asked() or self.failure is not None

    @contextmanager
    def section(self, keep_up: Callable[[int], None] = lambda expert: None) -> Iterator[None]:
        """Do work whose amount differs between ranks. All ranks come to the same sections in the same order.

        keep_up: takes part in the collectives of one piece of the others' work, by this expert, for a rank whose own is done
        or by another. Leave, on all ranks, where any was asked to stop.
        """
        self.pace.keep_up = keep_up
        try:
            yield
        except Leave:
            self.pace.leave()
            raise
        self.pace.end()

    def leave_if_asked(self, expert: int = 0) -> None:
        """Raise Leave if this rank or another was asked to stop. Called before each piece of work in a section.

        expert: of the policy, by which the piece computes.
        """
        self.pace.before(expert)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait, in a section, for something that others compute."""
        while not self.poll(ready):
            self.pace.wait()

    def poll(self, ready: Callable[[], bool]) -> bool:
        """Return `ready()`. If it raises RewardError, keep the error, return False from then on, and let all ranks leave."""
        if self.failure is None:
            try:
                return ready()
            except RewardError as error:
                self.failure = error
        return False


def raise_failure(journal: Journal) -> None:
    """Raise, on every rank, the reward's error of the last rank that has one."""
    ranks, failure = journal.ranks, journal.failure
    failed = int(ranks.max(torch.tensor(-1 if failure is None else ranks.rank)))
    if failed >= 0:
        reason = ranks.from_rank(failed, str(failure))
        raise failure or RewardErrorElsewhere(f"{reason} (rank {failed} of {ranks.world_size})")
