"""Send a sweep to Slurm in as many arrays as the site's limits ask for, as its queue has room for them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flash_grpo.cluster.board import Board
from flash_grpo.cluster.limits import Limit, room
from flash_grpo.cluster.orphans import adopt
from flash_grpo.cluster.refusal import refuse
from flash_grpo.cluster.slurm import NoSlurmError
from flash_grpo.cluster.study_lock import StudyLock
from flash_grpo.cluster.submission import RefusedError, submit
from flash_grpo.records.submissions import FOLDER, INTENDED, JobRequest, SubmittedRun, array_of, read_submitted

log = logging.getLogger(__name__)
SEND_S = 15.0  # seconds between two looks for room in the queue


@dataclass(kw_only=True)
class Sender:
    """Submits the waiting points of a board. It holds the study's lock until none waits.

    runs: what is to be recorded of each point, by name. limits: the site's.
    most: how many runs an array may have since sbatch refused more for a limit that cannot be seen; None: no such refusal.
    """

    study: Path
    lock: StudyLock
    request: JobRequest
    runs: Mapping[str, SubmittedRun]
    limits: list[Limit]
    most: int | None = None
    said: str = ""
    last: float = field(default=float("-inf"))

    def begin(self, board: Board, detach: bool) -> None:
        """Submit all points or, unless `detach`, as many as there is room for. Refuse what Slurm refuses."""
        try:
            size, limit = room(self.limits)
            if detach and limit and size is not None and size < len(board.waiting):
                refuse(_too_many(len(board.waiting), size, limit))
            self._send(board, whole=detach)
        except NoSlurmError as error:
            if not board.running:
                refuse(f"Slurm could not be asked ({error})")
            self._say(f"Slurm could not be asked ({error}), and is asked again")
        except RefusedError as error:
            if not board.running:
                refuse(f"Slurm refuses this job: {error}")
            self._give_up(board, error)
        if board.waiting:
            self._note(board)

    def send(self, board: Board) -> None:
        """Submit what there is room for by now, looking every SEND_S. Give the rest up if Slurm refuses it for good."""
        if time.monotonic() - self.last < SEND_S:
            return
        try:
            if (self.study / FOLDER / INTENDED).exists():
                if not adopt(self.study):
                    return
                self._take_recorded(board)
            self._send(board)
        except NoSlurmError as error:
            self._say(f"Slurm could not be asked ({error}), and is asked again")
        except RefusedError as error:
            self._give_up(board, error)
        finally:
            self.last = time.monotonic()

    def _send(self, board: Board, whole: bool = False) -> None:
        """Submit arrays until nothing waits or there is no room. RefusedError for other reasons and, if `whole`, for any."""
        while board.waiting:
            free, limit = room(self.limits)
            size = min(number for number in (free, self.most, len(board.waiting)) if number is not None)
            if not size:
                return self._say(f"{len(board.waiting)} runs wait for room in Slurm's queue: {limit}")
            try:
                self._submit(board, size)
            except RefusedError as error:
                if whole or "Submit" not in error.limit:
                    raise
                self.most = max(1, size // 2)
                if size == 1:
                    return self._say(f"{len(board.waiting)} runs wait for room in Slurm's queue: {error.limit}")
            else:
                if self.most is not None:  # more is tried later: each try costs the controller a refusal
                    self.most = 2 * size
                    return None
        self.lock.close()
        return None

    def _submit(self, board: Board, size: int) -> None:
        jobs = submit(self.study / FOLDER, self.request, [self.runs[point.name] for point in board.waiting[:size]])
        board.submitted(jobs)
        self._note(board)
        rest = f", {len(board.waiting)} wait for room" if board.waiting else ""
        array = array_of(jobs[0].job_id)
        log.info("submitted %d runs as %s%s; python -m flash_grpo.jobs %s", size, array, rest, self.study)

    def _take_recorded(self, board: Board) -> None:
        """Give the points jobs that an sbatch made whose answer was lost, and that have been recorded since."""
        import submitit

        jobs: list[Any] = []
        submitted = read_submitted(self.study)
        for point in board.waiting:
            newest = submitted.get(point.name, [None])[-1]
            if newest is None or newest.point != self.runs[point.name].point:
                break
            jobs.append(submitit.SlurmJob(self.request.folder, newest.job_id, tasks=list(range(newest.ranks))))
        board.submitted(jobs)
        self._note(board)

    def _note(self, board: Board) -> None:
        self.lock.note_unsent([point.name for point in board.waiting])

    def _give_up(self, board: Board, error: RefusedError) -> None:
        log.error("Slurm refuses the other %d runs: %s", len(board.waiting), error)
        board.give_up(f"not submitted: {error}")
        self.lock.note_unsent([])
        self.lock.close()

    def _say(self, message: str) -> None:
        """Print a message, once in a row."""
        if message != self.said:
            log.info(message)
        self.said = message


def _too_many(count: int, size: int, limit: Limit) -> str:
    some = f"sweep over at most {size} runs at a time (seed=0,1, later seed=2,3)" if size else "try again later"
    return (
        f"{count} runs, but {limit} leaves room for {size}, and with detach=true nobody would submit the others: {some}, "
        "or leave detach=true out: then the launcher submits them as room appears"
    )
