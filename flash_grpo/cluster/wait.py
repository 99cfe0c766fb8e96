"""Wait for the runs of a sweep that Slurm has, and report each one that ends."""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flash_grpo.cluster import slurm
from flash_grpo.cluster.bill import write_bills
from flash_grpo.cluster.board import Board
from flash_grpo.cluster.points import SweepPoint
from flash_grpo.cluster.run_state import OVER, RunState, run_state
from flash_grpo.records.known_jobs import known_jobs

log = logging.getLogger(__name__)
ASK_SLURM_S, LOOK_AGAIN_S = 15.0, 2.0  # seconds between two polls; the second value once a run seems to be over
SETTLE_S = 20.0  # how long to wait for the accounting when all runs are over


def wait(board: Board, study: Path, send: Callable[[Board], None]) -> None:
    """Wait until all runs are over, then write their bills. Exit 1 if one has failed; 130 on Ctrl-C, and the jobs go on.

    send: submits what it can of the board's waiting points; called again and again until none waits.
    """
    watch = Watch(study)
    try:
        while board.waiting or board.running:
            if board.waiting:
                send(board)
            board.collect(watch.ended_of)
            time.sleep(1)
    except KeyboardInterrupt:
        unsent = f", {len(board.waiting)} were not submitted" if board.waiting else ""
        log.warning(
            "no longer waiting; %d runs go on%s: python -m flash_grpo.jobs %s", len(board.running), unsent, study
        )
        sys.exit(130)
    _write_bills(study)
    board.end()


class Watch:
    """Finds the runs that are over, deciding as the jobs command does: from Slurm and their run.json together."""

    def __init__(self, study: Path) -> None:
        self.study, self.last_poll = study, 0.0
        self.seemed_over: set[str] = set()  # names of runs
        self.lingering: set[str] = set()  # names of runs whose jobs outlive them, and which the user knows of
        self.unanswered = False  # Slurm's last answer is missing

    def ended_of(self, points: list[SweepPoint]) -> list[tuple[SweepPoint, str]]:
        """Return (point, reason) for every run that has ended; reason is '' for a success.

        A run that seems to have failed is reported only if the next poll agrees, because accounting lags behind the queue.
        """
        ready = [point for point in points if point.job.paths.result_pickle.exists()]
        soon = self.seemed_over or any(point.name not in self.lingering for point in ready)
        if time.monotonic() - self.last_poll < (LOOK_AGAIN_S if soon else ASK_SLURM_S):
            return []
        try:
            answer, submitted = slurm.ask_about(self.study), known_jobs(self.study)
        except slurm.NoSlurmError as error:
            if not self.unanswered:
                log.warning("Slurm could not be asked (%s), and is asked again until it answers", error)
            self.unanswered = True
            return []
        finally:
            self.last_poll = time.monotonic()
        if self.unanswered:
            log.info("Slurm answers again")
        self.unanswered = False
        queued = {name for name, jobs in submitted.items() if any(job.job_id in answer.queued for job in jobs)}
        gone = [point for point in points if point.name not in queued]
        states = {point.name: run_state(self.study / point.name, submitted[point.name], answer) for point in gone}
        left = [run_state(self.study / point.name, submitted[point.name], answer) for point in ready]
        self._warn_of_lingering(left)
        ended = [point for point in gone if states[point.name].state in OVER]
        sure = [point for point in ended if point.name in self.seemed_over or states[point.name].state == "complete"]
        self.seemed_over = {point.name for point in ended}
        return [(point, _failure(states[point.name])) for point in sure]

    def _warn_of_lingering(self, runs: list[RunState]) -> None:
        """Warn, once for each run, of a job that stays in the queue although its run has ended: nobody else would end it."""
        for run in runs:
            if run.state == "lingering" and run.run not in self.lingering:
                self.lingering.add(run.run)
                log.warning("%s: %s (python -m flash_grpo.jobs %s --cancel %s)", run.run, run.why, self.study, run.run)


def _failure(run: RunState) -> str:
    """Say why a run that is over has failed; '' if it is complete."""
    if run.state == "complete":
        return ""
    return run.why if run.state == "failed" else f"{run.state}{f': {run.why}' if run.why else ''}"


def _write_bills(study: Path) -> None:
    """Write the bills of all runs, waiting for up to SETTLE_S for the accounting, which lags behind the queue.

    Bills that cannot be written by then, or of runs that another command submitted, are left to the jobs command.
    """
    deadline = time.monotonic() + SETTLE_S
    with suppress(slurm.NoSlurmError):
        while write_bills(study, slurm.ask_about(study)) and time.monotonic() < deadline:
            time.sleep(1)
