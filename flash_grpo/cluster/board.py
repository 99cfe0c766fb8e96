"""The runs of a sweep while a launcher looks after them: what each is, what is said about it, what counts as failed."""

import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from flash_grpo.cluster.last_words import last_words

log = logging.getLogger(__name__)
FEW = 10  # points, for which more processes would not be worth their start


@dataclass(kw_only=True)
class Run:
    """One point of the sweep, before, while and after it runs."""

    cfg: DictConfig
    number: int
    overrides: list[str]
    job: Any = None
    slot: int = -1
    began: float = 0.0
    took: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        return str(OmegaConf.select(self.cfg, "run_name"))

    @property
    def directory(self) -> str:
        return "/".join(str(OmegaConf.select(self.cfg, key)) for key in ("runs_root", "study", "run_name"))

    @property
    def log_file(self) -> str:
        return os.path.relpath(self.job.task(0).paths.stdout)


def compose(launcher: Launcher, job_overrides: Sequence[Sequence[str]], first: int) -> list[Run]:
    """Every point of the sweep, composed now: what is edited later changes nothing that waits."""
    points = [list(overrides) for overrides in job_overrides]
    loaded = enumerate(zip(points, _loaded(launcher, points), strict=True), start=first)
    runs = [Run(cfg=cfg, number=number, overrides=point) for number, (point, cfg) in loaded]
    for run in runs:
        if "/" in run.name:
            refuse(f"run_name={run.name}: a directory's name, so without a /")
    shared = [directory for directory, count in Counter(run.directory for run in runs).items() if count > 1]
    if shared:
        refuse(f"several runs of this sweep have one directory: {', '.join(shared)}")
    return runs


def _loaded(launcher: Launcher, points: list[list[str]]) -> list[DictConfig]:
    """Hydra takes a tenth of a second for a point: on all cores, where there are many."""

    def load(point: list[str]) -> DictConfig:
        return launcher.hydra_context.config_loader.load_sweep_config(launcher.config, point)

    if len(points) < FEW or cores() == 1:
        return [load(point) for point in points]
    global _load
    _load = load
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        return [cfg or load(point) for cfg, point in zip(pool.map(_tried, points), points, strict=True)]


def _tried(point: list[str]) -> DictConfig | None:
    """None where the point does not compose: the parent process, which tries it again, tells why."""
    try:
        return _load(point)
    except Exception:
        return None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse(why: str) -> None:
    print(f"error: {why}; nothing was started", file=sys.stderr)
    sys.exit(2)


@dataclass(kw_only=True)
class Board:
    """Where the runs of a sweep stand. Prints a line for each event."""

    waiting: list[Run] = field(default_factory=list)
    running: list[Run] = field(default_factory=list)
    parallel: int | None = None  # how many run at once, where that is known
    ended: list[Run] = field(default_factory=list)
    stopped_by: int = 0

    @property
    def total(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.ended)

    def start(self, run: Run, job: Any) -> None:
        self.waiting.remove(run)
        self.running.append(run)
        run.job, run.began = job, time.monotonic()
        log.info("started   %s  %s", self._count(len(self.running) + len(self.ended)), run.name)

    def collect(self, over: Callable[[list[Run]], list[tuple[Run, str]]]) -> None:
        """over: which of the runs have ended, each with why it is no success, empty if it is."""
        for run, why in over(self.running):
            run.took, run.failure = time.monotonic() - run.began, why
            self.running.remove(run)
            self.ended.append(run)
            self._tell(run)

    def end(self) -> None:
        """What came of it all, and an exit code that says so."""
        failed = [run for run in self.ended if run.failure]
        if self.stopped_by:
            log.warning("stopped before the end; the same command continues where each run last saved")
            sys.exit(128 + self.stopped_by)
        log.info("%d of %d runs complete", self.total - len(failed), self.total)
        if failed:
            for run in failed:
                log.error("FAILED  %s: %s  log: %s", run.name, run.failure, run.log_file)
            log.error("the same command repeats the failed ones and skips the others")
            sys.exit(1)

    def _tell(self, run: Run) -> None:
        count, took = self._count(len(self.ended)), duration(run.took)
        if run.failure and self.stopped_by:
            log.info("stopped   %s  %s after %s", count, run.name, took)
        elif run.failure:
            log.error("FAILED    %s  %s after %s: %s  log: %s", count, run.name, took, run.failure, run.log_file)
        else:
            log.info("finished  %s  %s after %s%s", count, run.name, took, self._time_left())

    def _count(self, number: int) -> str:
        return f"{number:>{len(str(self.total))}}/{self.total}"

    def _time_left(self) -> str:
        if not self.parallel or not (self.running or self.waiting):
            return ""
        complete = [run.took for run in self.ended if not run.failure]
        typical, now = sum(complete) / len(complete), time.monotonic()
        work = typical * len(self.waiting) + sum(max(0.0, typical - (now - run.began)) for run in self.running)
        return f", about {duration(work / self.parallel)} left"


def failure(job: Any) -> str:
    """Why a job that has ended is no success, in a line; empty if each of its ranks ended well."""
    ranks = [job.task(rank).paths for rank in range(job.num_tasks)]
    raised = [paths for paths in ranks if paths.result_pickle.exists() and job.task(ranks.index(paths)).exception()]
    silent = [paths for paths in ranks if not paths.result_pickle.exists()]
    cause = min(raised, key=lambda paths: paths.result_pickle.stat().st_mtime) if raised else next(iter(silent), None)
    if cause is None:
        return ""
    text = cause.stdout.read_text(errors="replace") if cause.stdout.exists() else ""
    state = "" if raised or job.state in ("FINISHED", "FAILED") else f"{job.state}: "
    return state + last_words([text])


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
