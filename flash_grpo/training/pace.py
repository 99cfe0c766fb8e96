"""Say how ranks that do different amounts of work learn that one of them was asked to stop: each by itself, or in lockstep.

Where a rank computes a velocity alone, it leaves a mark which the others find before their next velocity, without a
collective, and at the section's end all ranks meet and vote; so a rank may take any number of steps. Where the base is
sharded every velocity is collective: ranks vote before each, one that has less to do keeps up with the others, and where a
policy has several transformers all ranks compute by the same one.
"""

import time
from collections.abc import Callable

import torch

from flash_grpo.training.ranks import Ranks

POLL_S, MEET_S = 0.05, 0.002  # between two looks at what others compute, and at who has come to a meeting
# What a rank says in a vote; the largest counts. One that works by expert k says WORKING - k, so that the first goes first.
DONE, WAITING, WORKING, LEAVING = 0, 1, 100, 200


class Leave(Exception):
    """Some rank was asked to stop, or has no reward. Everything that the journal holds is done."""


class Apart:
    """The pace of ranks that each compute alone. leaving: returns True once this rank has to leave."""

    def __init__(self, ranks: Ranks, leaving: Callable[[], bool]):
        self.ranks, self.leaving, self.mark = ranks, leaving, ranks.mark()
        self.keep_up: Callable[[int], None] = lambda expert: None  # nobody needs it here

    def before(self, expert: int) -> None:
        """Raise Leave, before a piece of work, if this rank or another has to leave."""
        if self.leaving() or self.mark.found():
            self.mark.leave()
            raise Leave

    def wait(self) -> None:
        """Wait a little for what others compute, or raise Leave."""
        self.before(0)
        time.sleep(POLL_S)

    def leave(self) -> None:
        """Meet the other ranks after Leave, which they raise too."""
        self._meet(leaving=True)

    def end(self) -> None:
        """Meet the other ranks after this one's work is done, or raise Leave."""
        self._meet(leaving=False)

    def _meet(self, leaving: bool) -> None:
        """Vote with all ranks whether to leave; one that waits for the others can still ask them to."""
        vote = self.ranks.begin_vote(leaving or self.leaving())
        while not vote.complete():
            if self.leaving():
                self.mark.leave()
            time.sleep(MEET_S)
        if vote.result():
            raise Leave


class Lockstep:
    """The pace of ranks whose every velocity is collective. Methods as in `Apart`.

    keep_up: takes part in the collectives of one piece of the others' work, by this expert.
    """

    def __init__(self, ranks: Ranks, leaving: Callable[[], bool]):
        self.ranks, self.leaving = ranks, leaving
        self.keep_up: Callable[[int], None] = lambda expert: None

    def before(self, expert: int) -> None:
        while (largest := self._vote(WORKING - expert)) != WORKING - expert:
            self.keep_up(WORKING - largest)

    def wait(self) -> None:
        self._turn(WAITING)

    def leave(self) -> None:
        """Do nothing: all ranks have voted already."""

    def end(self) -> None:
        while self._turn(DONE) != DONE:
            pass

    def _vote(self, mine: int) -> int:
        """Say what this rank does and return the largest of what all say; Leave where any leaves."""
        largest = int(self.ranks.max(torch.tensor(LEAVING if self.leaving() else mine)))
        if largest == LEAVING:
            raise Leave
        return largest

    def _turn(self, mine: int) -> int:
        """Vote, and keep up with those that work; with none that does, wait a little."""
        largest = self._vote(mine)
        if largest > WAITING:
            self.keep_up(WORKING - largest)
        elif largest == WAITING:
            time.sleep(POLL_S)
        return largest
