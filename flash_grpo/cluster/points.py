"""Compose the points of a sweep, each of which is a run."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.cluster.refusal import refuse
from flash_grpo.records.identity import directory_name

FEW = 10  # number of points for which starting more processes would cost more time than it saves

_compose_point: Callable[[list[str]], DictConfig]  # in the processes of a pool, which inherit it when they are forked


class SweepLauncher(Protocol):
    """A Hydra launcher, as far as this folder uses it, after Hydra has called its `setup`. params: the launcher's settings.
    rehearse: see `rehearse`.
    """

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction
    params: dict[str, Any]
    rehearse: str | None


@dataclass(kw_only=True)
class SweepPoint:
    """One point of the sweep, before, while and after its run.

    cfg: the run's configuration. number: its place in the sweep. overrides: its part of the sweep's command line.
    job: submitit's, once it is started. slot: on this machine, which of the places for parallel runs it has.
    began: by time.monotonic. took: seconds. failure: why the run failed, '' if it did not.
    """

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
        """Return the log of rank 0, relative to the working directory; 'none' if the run was never started."""
        return os.path.relpath(self.job.task(0).paths.stdout) if self.job else "none"


def compose(launcher: SweepLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> list[SweepPoint]:
    """Compose every point now, so that later edits of the configuration change nothing that still waits.

    first: the number of the first point. The sweep is refused if two of its runs have the same directory.
    """
    overrides = [list(point) for point in job_overrides]
    composed = zip(overrides, _composed(launcher, overrides), strict=True)
    points = [
        SweepPoint(cfg=cfg, number=number, overrides=point) for number, (point, cfg) in enumerate(composed, start=first)
    ]
    refuse_points(points)
    return points


def kept_params(params: Mapping[str, Any] | None, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a file in `sweeps/` varies, without the keys that the command line gives itself."""
    given = {argument.split("=")[0].lstrip("+") for argument in arguments}
    return {key: value for key, value in (params or {}).items() if key not in given}


def refuse_points(points: Sequence[SweepPoint]) -> None:
    """Refuse a sweep of which two runs have one directory, or one has none, or of which single points are to be planned."""
    for point in points:
        for key in ("plan", "preflight"):
            if OmegaConf.select(point.cfg, key):
                refuse(f"{point.name}: {key} is set in this point of the sweep; give {key}=true on the command line")
        for key in ("study", "run_name"):
            try:
                directory_name(key, OmegaConf.select(point.cfg, key))
            except (ValueError, OmegaConfBaseException) as error:
                refuse(str(error).splitlines()[0])
    shared = [directory for directory, count in Counter(point.directory for point in points).items() if count > 1]
    if shared:
        refuse(f"several runs of this sweep have one directory: {', '.join(shared)}")


def rehearse(points: list[SweepPoint], function: str | None, ranks: int) -> None:
    """Refuse the sweep if the rehearsal of one of its points raises ValueError, before any of them starts.

    function: the rehearsal's dotted name, None for no rehearsal. ranks: of one run.
    """
    if not function:
        return
    rehearsal = get_method(function)
    for point in points:
        try:
            rehearsal(point.cfg, ranks)
        except ValueError as error:
            refuse(f"{point.name}: {error}")


def _composed(launcher: SweepLauncher, points: list[list[str]]) -> list[DictConfig]:
    """Compose all points, on all cores if there are many: Hydra takes 0.1 s for each."""

    def compose_point(point: list[str]) -> DictConfig:
        return launcher.hydra_context.config_loader.load_sweep_config(launcher.config, point)

    if len(points) < FEW or cores() == 1:
        return [compose_point(point) for point in points]
    global _compose_point
    _compose_point = compose_point
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        return [cfg or compose_point(point) for cfg, point in zip(pool.map(_try, points), points, strict=True)]


def _try(point: list[str]) -> DictConfig | None:
    """Compose a point; None if that fails. The parent process then composes it again and raises the error."""
    try:
        return _compose_point(point)
    except Exception:
        return None


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
