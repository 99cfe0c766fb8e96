"""Follow the runs of a sweep while a launcher waits for them, and print a line for each event."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flash_grpo.cluster.bill import readable_manifest
from flash_grpo.cluster.points import SweepPoint

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Board:
    """The points of a sweep, by their state: waiting, running or ended.

    parallel: how many run at once; None if Slurm decides that. stopped_by: the signal that ended the sweep early, or 0.
    """

    waiting: list[SweepPoint] = field(default_factory=list)
    running: list[SweepPoint] = field(default_factory=list)
    parallel: int | None = None
    ended: list[SweepPoint] = field(default_factory=list)
    stopped_by: int = 0

    @property
    def total(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.ended)

    def start(self, point: SweepPoint, job: Any) -> None:
        """Note that a waiting point runs as `job`."""
        self.waiting.remove(point)
        self.running.append(point)
        point.job, point.began = job, time.monotonic()
        log.info("started   %s  %s", self._count(len(self.running) + len(self.ended)), point.name)

    def submitted(self, jobs: list[Any]) -> None:
        """Note that the first waiting points are submitted as `jobs`."""
        for point, job in zip(self.waiting, jobs, strict=False):
            point.job, point.began = job, time.monotonic()
        self.running += self.waiting[: len(jobs)]
        del self.waiting[: len(jobs)]

    def give_up(self, why: str) -> None:
        """Note that no waiting point can be started."""
        for point in self.waiting:
            point.failure = why
        self.ended += self.waiting
        self.waiting = []

    def collect(self, ended_of: Callable[[list[SweepPoint]], list[tuple[SweepPoint, str]]]) -> None:
        """Move the points that have ended from running to ended, and report each.

        ended_of: given the running points, returns those that have ended, each with why it failed, '' for a success.
        """
        for point, failure in ended_of(self.running):
            point.took, point.failure = time.monotonic() - point.began, failure
            self.running.remove(point)
            self.ended.append(point)
            self._report(point)

    def end(self) -> None:
        """Print the result of the sweep, and exit unless every run is complete: 1, or 128 + the signal that stopped it."""
        failed = [point for point in self.ended if point.failure]
        if self.stopped_by:
            log.warning("stopped before the end; the same command continues where each run last saved")
            sys.exit(128 + self.stopped_by)
        log.info("%d of %d runs complete", self.total - len(failed), self.total)
        if failed:
            for point in failed:
                log.error("FAILED  %s: %s  log: %s", point.name, point.failure, point.log_file)
            log.error("the same command repeats the failed runs and skips the complete ones")
            sys.exit(1)

    def _report(self, point: SweepPoint) -> None:
        count, took = self._count(len(self.ended)), duration(point.took)
        if point.failure and self.stopped_by:
            log.info("stopped   %s  %s after %s", count, point.name, took)
        elif point.failure:
            log.error("FAILED    %s  %s after %s: %s  log: %s", count, point.name, took, point.failure, point.log_file)
        else:
            log.info("finished  %s  %s after %s%s%s", count, point.name, took, _early(point), self._time_left())

    def _count(self, number: int) -> str:
        return f"{number:>{len(str(self.total))}}/{self.total}"

    def _time_left(self) -> str:
        if not self.parallel or not (self.running or self.waiting):
            return ""
        complete = [point.took for point in self.ended if not point.failure]
        typical, now = sum(complete) / len(complete), time.monotonic()
        work = typical * len(self.waiting) + sum(max(0.0, typical - (now - point.began)) for point in self.running)
        return f", about {duration(work / self.parallel)} left"


def _early(point: SweepPoint) -> str:
    """Return which guard has completed a run before its budget was spent; '' if none has."""
    manifest, _ = readable_manifest(Path(point.directory))
    return f", {manifest.reason}" if manifest and manifest.reason else ""


def duration(seconds: float) -> str:
    """Format seconds to the second, from an hour on to the minute.

    >>> [duration(seconds) for seconds in (59, 61, 3660)]
    ['59 s', '1 min 01 s', '1 h 01 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
