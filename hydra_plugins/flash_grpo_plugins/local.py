"""`hydra/launcher=local_bounded`: a sweep on this machine, a few runs at a time, each in its own process.

submitit's local executor starts the processes; this adds a bound on how many run at once, a line per event, an end
that names every failure, and a Ctrl-C that lets the runs save.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

from flash_grpo.cluster.board import Board, Run, compose, cores, failure
from flash_grpo.cluster.node import run_here
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher

log = logging.getLogger(__name__)

TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # a terminal sends them to us and to all runs at once
REPEAT_STOP_S = 5.0  # a process that was just starting may have missed the first one


@dataclass
class LocalBoundedConf(LocalQueueConf):
    _target_: str = "hydra_plugins.flash_grpo_plugins.local.BoundedLocalLauncher"
    submitit_folder: str = "${hydra.sweep.dir}"  # each run's log goes to a folder of its name in here
    max_parallel: int | None = None  # runs at once; null: one per GPU, or per core where there is no GPU
    timeout_min: int = 60 * 24 * 365  # budgets end runs, not this
    stderr_to_stdout: bool = True  # one log per run


ConfigStore.instance().store("local_bounded", LocalBoundedConf, group="hydra/launcher", provider="flash_grpo")


class BoundedLocalLauncher(LocalLauncher):
    def __init__(self, max_parallel: int | None = None, **params: Any) -> None:
        super().__init__(**params)
        self.gpu_sets = _gpu_sets(params["gpus_per_node"] or 1)
        self.max_parallel = max_parallel or len(self.gpu_sets) or max(1, cores() // params["tasks_per_node"])

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        runs = compose(self, job_overrides, initial_job_idx)
        _pass_on_this_code()
        board = Board(waiting=list(runs), parallel=self.max_parallel)
        folder, at_once = self.params["submitit_folder"], min(self.max_parallel, len(runs))
        log.info("%d runs, %d at a time; a log for each in %s/", len(runs), at_once, folder)
        with _stop_signals(board) as stop:
            while board.running or (board.waiting and not board.stopped_by):
                self._fill(board)
                board.collect(over=lambda runs: [(run, failure(run.job)) for run in runs if run.job.done()])
                stop.pass_on()
                time.sleep(0.1)
        board.end()
        return [run.job.results()[0] for run in runs]

    def _fill(self, board: Board) -> None:
        while board.waiting and len(board.running) < board.parallel and not board.stopped_by:
            with _terminal_signals_blocked():  # for ever in the run, which hears of a Ctrl-C from us alone
                run = board.waiting[0]
                run.slot = min(set(range(board.parallel)) - {other.slot for other in board.running})
                board.start(run, self._submit(run))

    def _submit(self, run: Run) -> Any:
        from submitit import LocalExecutor

        executor = LocalExecutor(folder=Path(self.params["submitit_folder"]) / run.name.replace("/", "_"))
        keys = ("timeout_min", "tasks_per_node", "nodes", "stderr_to_stdout")
        executor.update_parameters(**{key: self.params[key] for key in keys})
        gpus = self.gpu_sets[run.slot % len(self.gpu_sets)] if self.gpu_sets else ""
        return executor.submit(run_here, self, run.cfg, run.number, Singleton.get_state(), gpus)


def _gpu_sets(size: int) -> list[str]:
    """The GPUs this process may use, in sets of `size`, as values of CUDA_VISIBLE_DEVICES."""
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
    """The runs import what this process imports, be it installed or beside train.py, wherever they are started."""
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
    """While runs are under way: a first Ctrl-C (or SIGTERM, SIGHUP) lets them save, a second one kills them."""
    stop = _Stop(board)
    before = {each: signal.signal(each, stop.note) for each in (*TERMINAL_SIGNALS, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Stop:
    """A request to stop, and that it reaches the runs."""

    def __init__(self, board: Board) -> None:
        self.board, self.passed_on = board, 0.0

    def note(self, number: int, _frame: Any) -> None:
        running = len(self.board.running)
        if not self.board.stopped_by:
            log.warning("stopping: %d runs save and end (once more to kill them)", running)
            self.board.stopped_by = number
        else:
            log.warning("killing %d runs", running)
            _kill(self.board.running)

    def pass_on(self) -> None:
        """SIGTERM to submitit's controllers, which hand it to the runs."""
        now = time.monotonic()
        if self.board.stopped_by and now - self.passed_on >= REPEAT_STOP_S:
            self.passed_on = now
            for run in self.board.running:
                os.kill(int(run.job.job_id), signal.SIGTERM)


def _kill(runs: list[Run]) -> None:
    import psutil

    for run in runs:
        controller = psutil.Process(int(run.job.job_id))
        for process in [*controller.children(recursive=True), controller]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
