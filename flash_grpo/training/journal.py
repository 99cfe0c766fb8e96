"""Remember what has been done of the iteration under way, so that a run can leave in the middle of it and go on there.

An iteration of a large model takes minutes, longer than a preemption's grace time. All randomness is keyed, so a piece of
work whose result is known need not be done again. Work that ranks do each by itself stands in a `section`: there a rank that
is asked to stop leaves a mark which the others find before their next velocity, without a collective; at the section's end
all ranks meet and vote. So a rank may take any number of steps. Where the base is sharded every velocity is collective: there
ranks vote before each, and one that has less to do keeps up with the others.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.training.ranks import Ranks

Result = TypeVar("Result")
POLL_S, MEET_S = 0.05, 0.002  # between two looks at what others compute, and at who has come to a meeting
DONE, WAITING, WORKING, LEAVING = range(4)  # what a rank says in a vote; the largest counts


class Leave(Exception):
    """Some rank was asked to stop, or has no reward. Everything that the journal holds is done."""


class RewardErrorElsewhere(RewardError):
    """A reward has failed on another rank."""


class Journal:
    """Results by name, on this rank, and when to leave.

    asked: returns True once this rank was asked to stop. together: velocities need all ranks. pieces: how many were done
    since the run began; never falls.
    """

    def __init__(self, ranks: Ranks, together: bool = False):
        self.ranks, self.together = ranks, together
        self.asked: Callable[[], bool] = lambda: False
        self.failure: RewardError | None = None
        self.done: dict[str, Any] = {}
        self.pieces = 0
        self._mark = ranks.mark()
        self._keep_up: Callable[[], None] = lambda: None

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

    @contextmanager
    def section(self, keep_up: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Do work whose amount differs between ranks. All ranks come to the same sections in the same order.

        keep_up: takes part in the collectives of one piece of the others' work, for a rank whose own is done. Leave, on all
        ranks, where any was asked to stop.
        """
        self._keep_up = keep_up
        try:
            yield
        except Leave:
            if not self.together:  # there all ranks have voted already
                self._meet(leaving=True)
            raise
        if self.together:
            self._wait_for_others()
        else:
            self._meet(leaving=False)

    def leave_if_asked(self) -> None:
        """Raise Leave if this rank or another was asked to stop. Called before each piece of work in a section."""
        if self.together:
            self._vote(WORKING)
        elif self._leaving() or self._mark.found():
            self._mark.leave()
            raise Leave

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait, in a section, for something that others compute."""
        while not self.poll(ready):
            if not self.together:
                self.leave_if_asked()
                time.sleep(POLL_S)
            else:
                self._turn(WAITING)

    def poll(self, ready: Callable[[], bool]) -> bool:
        """Return `ready()`. If it raises RewardError, keep the error, return False from then on, and let all ranks leave."""
        if self.failure is None:
            try:
                return ready()
            except RewardError as error:
                self.failure = error
        return False

    def _leaving(self) -> bool:
        return self.asked() or self.failure is not None

    def _vote(self, mine: int) -> int:
        """Say what this rank does and return the largest of what all say; Leave where any leaves."""
        largest = int(self.ranks.max(torch.tensor(LEAVING if self._leaving() else mine)))
        if largest == LEAVING:
            raise Leave
        return largest

    def _turn(self, mine: int) -> int:
        """Vote, and keep up with those that work; with none that does, wait a little."""
        largest = self._vote(mine)
        if largest == WORKING:
            self._keep_up()
        elif largest == WAITING:
            time.sleep(POLL_S)
        return largest

    def _wait_for_others(self) -> None:
        while self._turn(DONE) != DONE:
            pass

    def _meet(self, leaving: bool) -> None:
        """Vote with all ranks whether to leave; one that waits for the others can still ask them to."""
        vote = self.ranks.begin_vote(leaving or self._leaving())
        while not vote.complete():
            if self._leaving():
                self._mark.leave()
            time.sleep(MEET_S)
        if vote.result():
            raise Leave


def raise_failure(journal: Journal) -> None:
    """Raise, on every rank, the reward's error of the last rank that has one."""
    ranks, failure = journal.ranks, journal.failure
    failed = int(ranks.max(torch.tensor(-1 if failure is None else ranks.rank)))
    if failed >= 0:
        reason = ranks.from_rank(failed, str(failure))
        raise failure or RewardErrorElsewhere(f"{reason} (rank {failed} of {ranks.world_size})")
