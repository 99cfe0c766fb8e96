"""Follow the runs of a study: send each record to a tracker once, in order, whatever is killed or continued meanwhile.

Why a position in records.jsonl names a record: an interrupted run is cut back to its checkpoint and repeats what it lost
bit-identically, but for the times. What a tracker holds is asked of the tracker, so nothing has to be remembered here.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import MANIFEST, RECORDS
from flash_grpo.tracking.pictures import Picture, picture_files, read_pictures
from flash_grpo.tracking.points import Point, TrackedRun, read_points, read_run

Stamp = tuple[tuple[int, int], ...]


class Tracker(Protocol):
    """One run in a tracker. Each file of this folder that is named for a tracker has a class `Tracker` like this.

    held: how many of the run's points the tracker has. shown: the hashes of pictures that it has.
    """

    held: int
    shown: set[str]

    def __init__(self, run: TrackedRun, spent: list[float], store: Path):
        """Open the run. spent: of the points that the run has now; a run in the tracker that differs is made anew, if
        the tracker can do that. store: a folder for what the tracker writes on this machine.
        """

    def record(self, points: list[Point]) -> None:
        """Send the points, which follow those that the tracker has."""

    def show(self, pictures: list[Picture]) -> None:
        """Send pictures."""

    def end(self, status: str, why: str) -> None:
        """Close the run. status: completed, failed or running: it goes on, or may be continued. why: as in run.json."""


Opener = Callable[[TrackedRun, list[float]], Tracker]


@dataclass(kw_only=True)
class Followed:
    """What has been seen of a run at the last look.

    status, why: as in run.json. spent: of its points. stamp: of its files. pictured: on what its pictures depend.
    """

    id: str
    status: str = "running"
    why: str = ""
    spent: list[float] = field(default_factory=list)
    stamp: Stamp = ()
    pictured: tuple[object, ...] = ()
    tracker: Tracker | None = None


class Follower:
    """Sends what the runs of a study have written since the last look.

    open_run: opens a run in a tracker, as `Tracker` does. warn: is given a line for each run that is damaged.
    """

    def __init__(self, study: Path, open_run: Opener, warn: Callable[[str], object]) -> None:
        self.study, self.open_run, self.warn = study, open_run, warn
        self.runs: dict[str, Followed] = {}
        self.warned: set[str] = set()

    def look(self, alive: Collection[str]) -> None:
        """Send what is new of every run, and close the runs that are over. alive: names of those that wait or run; they
        must have been asked for before, so that an ended run's files are final.
        """
        for path in sorted(self.study.glob(f"*/{MANIFEST}")):
            try:
                self._look_at(path.parent, path.parent.name in alive)
            except DamagedFileError as damage:
                if str(damage) not in self.warned:
                    self.warned.add(str(damage))
                    self.warn(f"{damage} (the other runs are followed)")

    def close(self) -> None:
        """Close the runs that still go on."""
        for followed in self.runs.values():
            _close(followed)

    def _look_at(self, directory: Path, alive: bool) -> None:
        before, stamp = self.runs.get(directory.name), stamp_of(directory)
        if before and before.stamp == stamp and (alive or not before.tracker):
            return
        run = read_run(directory)
        if run is None:
            return
        points = read_points(run)
        followed = self._current(run, before, [point.spent for point in points])
        followed.stamp = stamp
        self._send(run, followed, points)
        if not alive:
            _close(followed)

    def _current(self, run: TrackedRun, before: Followed | None, spent: list[float]) -> Followed:
        """Return the run as it was followed before, or anew: if it is another run of this name, or was cut back."""
        if before and before.id == run.id and spent[: len(before.spent)] == before.spent:
            followed = before
        else:
            if before:
                _close(before)
            followed = self.runs[run.name] = Followed(id=run.id)
        followed.spent, followed.status, followed.why = spent, run.status, run.why
        return followed

    def _send(self, run: TrackedRun, followed: Followed, points: list[Point]) -> None:
        if followed.tracker is None:
            followed.tracker, followed.pictured = self.open_run(run, followed.spent), ()
        tracker = followed.tracker
        if new := points[tracker.held :]:
            tracker.record(new)
            tracker.held = len(points)
        self._show(run, followed, points, tracker)

    def _show(self, run: TrackedRun, followed: Followed, points: list[Point], tracker: Tracker) -> None:
        pictured = (run.status, any(point.kind == "evaluation" for point in points), *followed.stamp[2:])
        if pictured == followed.pictured:
            return  # reading pictures takes long
        new = [picture for picture in read_pictures(run, points) if picture.hash not in tracker.shown]
        if new:
            tracker.show(new)
            tracker.shown |= {picture.hash for picture in new}
        followed.pictured = pictured


def stamp_of(directory: Path) -> Stamp:
    """Return sizes and times of run.json, the records and the pictures: they differ after the run has written."""
    return tuple(map(_size_and_time, [directory / MANIFEST, directory / RECORDS, *picture_files(directory)]))


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:  # not written yet, or deleted just now
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _close(followed: Followed) -> None:
    if followed.tracker:
        followed.tracker.end(followed.status, followed.why)
    followed.tracker = None
