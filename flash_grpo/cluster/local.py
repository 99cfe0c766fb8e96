"""Run a sweep on this machine, a few runs at a time, each in processes of its own.

submitit's local executor starts the processes. This module adds a bound on how many runs go on at once, a line for each
event, an end that names every failure, and a Ctrl-C that lets the runs save.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

from flash_grpo.cluster.board import Board
from flash_grpo.cluster.follower import followed
from flash_grpo.cluster.last_words import last_words
from flash_grpo.cluster.node import run_here
from flash_grpo.cluster.points import SweepLauncher, SweepPoint, compose, cores, rehearse
from flash_grpo.records.full_disk import naming_full_disk

log = logging.getLogger(__name__)

TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # a terminal sends them to us and to all runs at once
REPEAT_STOP_S = 5.0  # a process that was just starting may have missed the first SIGTERM


class LocalSweepLauncher(SweepLauncher, Protocol):
    """The local launcher, as far as `launch` uses it. max_parallel: as in `LocalBoundedConf`."""

    max_parallel: int | None


def launch(launcher: LocalSweepLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Go through the sweep and return its results; exit if it was stopped or a run has failed (see `Board.end`).

    first: the number of the first point.
    """
    points, params = compose(launcher, job_overrides, first), launcher.params
    rehearse(points, launcher.rehearse, params["tasks_per_node"])
    _pass_on_this_code()
    gpu_sets = _gpu_sets(params["gpus_per_node"] or 1)
    parallel = launcher.max_parallel or len(gpu_sets) or max(1, cores() // params["tasks_per_node"])
    board, folder = Board(waiting=list(points), parallel=parallel), params["submitit_folder"]
    log.info("%d runs, %d at a time; a log for each in %s/", len(points), min(parallel, len(points)), folder)
    with followed(points), _stop_signals(board) as stop, _none_left_alone(board, stop):
        while board.running or (board.waiting and not board.stopped_by):
            while board.waiting and len(board.running) < parallel and not board.stopped_by:
                _start_next_or_stop(launcher, board, gpu_sets)
            board.collect(_ended_of)
            stop.pass_on()
            time.sleep(0.1)
    board.end()
    return [point.job.results()[0] for point in points]


def _start_next_or_stop(launcher: LocalSweepLauncher, board: Board, gpu_sets: list[str]) -> None:
    """Start the first waiting point. If it cannot be started, let the runs that go on save and end: none is left alone."""
    try:
        with naming_full_disk(Path(launcher.params["submitit_folder"])):
            _start_next(launcher, board, gpu_sets)
    except Exception as error:  # a full disk, no more processes, whatever submitit raises
        log.error("%s cannot be started: %s; %d runs save and end", board.waiting[0].name, error, len(board.running))
        board.stopped_by = signal.SIGTERM


def _start_next(launcher: LocalSweepLauncher, board: Board, gpu_sets: list[str]) -> None:
    """Start the first waiting point in the lowest free slot. Its GPUs are those of the slot."""
    from submitit import LocalExecutor

    point, params = board.waiting[0], launcher.params
    point.slot = next(slot for slot in range(len(board.running) + 1) if slot not in [run.slot for run in board.running])
    executor = LocalExecutor(folder=Path(params["submitit_folder"]) / point.name.replace("/", "_"))
    keys = ("timeout_min", "tasks_per_node", "nodes", "stderr_to_stdout")
    executor.update_parameters(**{key: params[key] for key in keys})
    gpus = gpu_sets[point.slot % len(gpu_sets)] if gpu_sets else ""
    with _terminal_signals_blocked():  # the run inherits the mask, so only we can tell it of a Ctrl-C
        job = executor.submit(run_here, launcher, point.cfg, point.number, Singleton.get_state(), gpus)
        board.start(point, job)


def _ended_of(points: list[SweepPoint]) -> list[tuple[SweepPoint, str]]:
    return [(point, _failure(point.job)) for point in points if point.job.done()]


def _failure(job: Any) -> str:
    """Say in a line why submitit's `job`, which has ended, has failed; '' if every rank ended well."""
    ranks = [job.task(rank).paths for rank in range(job.num_tasks)]
    raised = [paths for rank, paths in enumerate(ranks) if paths.result_pickle.exists() and _has_raised(job.task(rank))]
    silent = [paths for paths in ranks if not paths.result_pickle.exists()]
    cause = min(raised, key=lambda paths: paths.result_pickle.stat().st_mtime) if raised else next(iter(silent), None)
    if cause is None:
        return ""
    text = cause.stdout.read_text(errors="replace") if cause.stdout.exists() else ""
    state = "" if raised or job.state in ("FINISHED", "FAILED") else f"{job.state}: "
    return state + last_words([text])


def _has_raised(task: Any) -> bool:
    """Return True if submitit's `task`, which has left a result, has raised an exception, or if its result is damaged."""
    try:
        return task.exception() is not None
    except Exception as error:  # whatever unpickling raises: a full disk cuts a result short
        log.warning("%s: cannot be read (%s: %s)", task.paths.result_pickle, type(error).__name__, error)
        return True


def _gpu_sets(size: int) -> list[str]:
    """Split the GPUs that this process may use into sets of `size`; return each as a value of CUDA_VISIBLE_DEVICES."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        gpus = [gpu for gpu in chosen.split(",") if gpu]
    elif shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        gpus = [str(i) for i in range(sum(line.startswith("GPU ") for line in listing.splitlines()))]
    else:
        gpus = []
    return [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]


def _pass_on_this_code() -> None:
    """Let the runs import what this process imports, installed or beside train.py, whatever their working directory."""
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.abspath(sys.path[0]), *([inherited] if inherited else [])])
    os.environ["PYTHONSAFEPATH"] = "1"  # `python -m` would put the working directory first


# -- stopping ----------------------------------------------------------------------------------------------------------


@contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stop_signals(board: Board) -> Iterator["_Stop"]:
    """Inside the block, let a first Ctrl-C (or SIGTERM, SIGHUP) make the runs save and end, and a second one kill them."""
    stop = _Stop(board)
    before = {number: signal.signal(number, stop.note) for number in (*TERMINAL_SIGNALS, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _none_left_alone(board: Board, stop: "_Stop") -> Iterator[None]:
    """If the block raises, let the runs that go on save and end, and wait for that, before the error ends the launcher."""
    try:
        yield
    except Exception as error:
        names = ", ".join(point.name for point in board.running) or "none"
        log.error("the sweep cannot go on: %s: %s; its runs save and end: %s", type(error).__name__, error, names)
        board.stopped_by = signal.SIGTERM
        while any(_goes_on(point) for point in board.running):
            stop.pass_on()
            time.sleep(0.1)
        raise


def _goes_on(point: SweepPoint) -> bool:
    """Return True if the run's controller, which ends after the ranks, is alive."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        return psutil.Process(int(point.job.job_id)).status() != psutil.STATUS_ZOMBIE
    return False


class _Stop:
    """Receives a request to stop the sweep, and repeats it to the runs until they have ended."""

    def __init__(self, board: Board) -> None:
        self.board, self.passed_on = board, 0.0

    def note(self, number: int, _frame: Any) -> None:
        """Handle a signal."""
        running = len(self.board.running)
        if not self.board.stopped_by:
            log.warning("stopping: %d runs save and end (once more to kill them)", running)
            self.board.stopped_by = number
        else:
            log.warning("killing %d runs", running)
            _kill(self.board.running)

    def pass_on(self) -> None:
        """Send SIGTERM to submitit's controllers, which hand it to the runs."""
        now = time.monotonic()
        if self.board.stopped_by and now - self.passed_on >= REPEAT_STOP_S:
            self.passed_on = now
            for point in self.board.running:
                with suppress(ProcessLookupError):
                    os.kill(int(point.job.job_id), signal.SIGTERM)


def _kill(points: list[SweepPoint]) -> None:
    import psutil

    for point in points:
        with suppress(psutil.NoSuchProcess):
            controller = psutil.Process(int(point.job.job_id))
            for process in [*controller.children(recursive=True), controller]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
