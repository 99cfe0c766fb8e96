"""Launch a sweep on Slurm: compose its points, rehearse them, freeze what they read, submit them, wait for them."""

import hashlib
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from flash_grpo.cluster import gpus, slurm
from flash_grpo.cluster.board import Board
from flash_grpo.cluster.follower import followed
from flash_grpo.cluster.limits import Limit, refuse_too_long_a_run, site_limits
from flash_grpo.cluster.node import run_on_node
from flash_grpo.cluster.orphans import lock_to_submit
from flash_grpo.cluster.points import SweepLauncher, SweepPoint, compose, rehearse
from flash_grpo.cluster.refusal import refuse
from flash_grpo.cluster.run_state import ALIVE, run_states
from flash_grpo.cluster.sending import Sender
from flash_grpo.cluster.site import refuse_what_cannot_run
from flash_grpo.cluster.snapshot import snapshot
from flash_grpo.cluster.study_lock import LockedError, StudyLock
from flash_grpo.cluster.submission import write_point
from flash_grpo.cluster.wait import wait
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.full_disk import naming_full_disk
from flash_grpo.records.submissions import JobRequest, SubmittedRun

log = logging.getLogger(__name__)

# submitit's own names of settings; every other setting of the launcher goes to sbatch, by sbatch's name.
SUBMITIT_NAMES = {"timeout_min", "mem_gb", "tasks_per_node", "nodes", "cpus_per_task", "name"}
SUBMITIT_NAMES |= {"stderr_to_stdout"}
NOT_SBATCH = ("submitit_folder", "max_num_timeout")


class SlurmSweepLauncher(SweepLauncher, Protocol):
    """The Slurm launcher, as far as `launch` uses it. The fields are those of `SlurmResumableConf`."""

    detach: bool
    files: tuple[str, ...]


def launch(launcher: SlurmSweepLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Submit the sweep as one job array, or several where the site's limits ask for it, and wait, unless `launcher.detach`.

    first: the number of the first point. A sweep that cannot run is refused in one line, before anything is queued.
    """
    params, folder = launcher.params, Path(launcher.config.hydra.sweep.dir)
    study = folder.parent
    refuse_what_cannot_run(params)
    limits = _limits(params)
    points = compose(launcher, job_overrides, first)
    rehearse(points, launcher.rehearse, params["nodes"] * params["tasks_per_node"])
    _refuse_other_studies(study, points)
    lock = _lock(study)
    _refuse_runs_under_way(study, points)
    with naming_full_disk(folder):
        code = snapshot(folder / "code")
        for point in points:
            _copy_files(point, launcher.files, folder / "files")
            _resolve(point, folder / "config")
        board, sender = Board(waiting=list(points)), _sender(launcher, study, lock, limits, points, code)
        sender.begin(board, launcher.detach)
    with followed(points, launcher.detach):
        if not launcher.detach:
            wait(board, study, sender.send)
    return [JobReturn(overrides=point.overrides, status=JobStatus.COMPLETED) for point in points]


# -- before anything is queued ------------------------------------------------------------------------------------------


def _limits(params: Mapping[str, Any]) -> list[Limit]:
    try:
        limits = site_limits(params)
    except slurm.NoSlurmError as error:
        refuse(str(error))
    refuse_too_long_a_run(limits, params["timeout_min"])
    return limits


def _lock(study: Path) -> StudyLock:
    """Take the study's lock; no run of the study can be submitted by others from the checks on until it is released."""
    try:
        lock = lock_to_submit(study)
    except (LockedError, slurm.NoSlurmError, DamagedFileError) as error:
        refuse(str(error))
    lock.note_unsent([])  # a dead launcher's
    return lock


def _refuse_other_studies(study: Path, points: list[SweepPoint]) -> None:
    """Refuse a sweep over several studies: the jobs command finds runs by their study's jobs.jsonl."""
    here = os.path.abspath(study)
    for point in points:
        there = os.path.dirname(os.path.abspath(point.directory))
        if there != here:
            refuse(
                f"{point.name}: lies in {there}, the sweep in {here}; study and runs_root cannot be swept over on Slurm"
            )


def _refuse_runs_under_way(study: Path, points: list[SweepPoint]) -> None:
    """Refuse a run that already has a job which waits or runs: the second job would wait for the first one's lock."""
    try:
        runs = run_states(study, slurm.ask_about(study))
    except slurm.NoSlurmError as error:
        refuse(str(error))
    names = {point.name for point in points}
    for run in runs:
        if run.job and run.state in ALIVE and run.run in names:
            refuse(
                f"{run.run} is job {run.job.job_id}, {run.state} (to end it: "
                f"python -m flash_grpo.jobs {study} --cancel {run.run})"
            )


# -- freezing what the runs read ----------------------------------------------------------------------------------------


def _copy_files(point: SweepPoint, keys: Sequence[str], folder: Path) -> None:
    """Copy the files that the configuration names under `keys`, and name the copies there, so that edits change nothing.

    A copy is named by its content: points with the same file share it.
    """
    for key in keys:
        path = OmegaConf.select(point.cfg, key)
        if isinstance(path, str) and Path(path).is_file():
            content = Path(path).read_bytes()
            copy = folder.absolute() / f"{hashlib.sha256(content).hexdigest()[:12]}-{Path(path).name}"
            if not copy.exists():
                folder.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
            OmegaConf.update(point.cfg, key, str(copy))


def _resolve(point: SweepPoint, folder: Path) -> None:
    """Resolve the configuration now, so that it cannot depend on the node; write a readable copy to `folder`/RUN.yaml."""
    keys = [str(key) for key in point.cfg if key != "hydra" and not OmegaConf.is_missing(point.cfg, key)]
    for key in keys:
        if OmegaConf.is_config(part := point.cfg[key]):
            OmegaConf.resolve(part)
        else:
            point.cfg[key] = part
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{point.name}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.masked_copy(point.cfg, keys)))


# -- submitting ---------------------------------------------------------------------------------------------------------


def _sender(
    launcher: SlurmSweepLauncher,
    study: Path,
    lock: StudyLock,
    limits: list[Limit],
    points: list[SweepPoint],
    code: Path,
) -> Sender:
    """Write what the points' jobs execute, and return what submits them."""
    folder, singletons = Path(launcher.config.hydra.sweep.dir), Singleton.get_state()
    request = JobRequest(
        folder=str(Path(launcher.params["submitit_folder"]).absolute()),
        python=python_on(code),
        parameters=sbatch_parameters(launcher.params),
    )
    ranks = launcher.params["nodes"] * launcher.params["tasks_per_node"]
    runs = {
        point.name: SubmittedRun(
            run=point.name,
            directory=point.directory,
            overrides=point.overrides,
            code=str(code),
            ranks=ranks,
            point=str(write_point(folder, point.name, run_on_node, launcher, point.cfg, point.number, singletons)),
            job_id="",
            folder="",
            submitted=0.0,
        )
        for point in points
    }
    return Sender(study=study, lock=lock, request=request, runs=runs, limits=limits)


def sbatch_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the launcher's settings to submitit's names."""
    settings = {key: value for key, value in params.items() if key not in (*NOT_SBATCH, *gpus.KEYS)}
    if settings["cpus_per_task"]:  # since Slurm 22.05 a step does not inherit it, and would be bound to one core
        settings["srun_args"] = [*settings["srun_args"], f"--cpus-per-task={settings['cpus_per_task']}"]
    settings["additional_parameters"] = {"chdir": os.getcwd(), **settings["additional_parameters"]}
    named = {key if key in SUBMITIT_NAMES else f"slurm_{key}": value for key, value in settings.items()}
    return named | gpus.gpu_parameters(params)


def python_on(code: Path) -> str:
    """Return the command that starts the interpreter of every rank at every start, on the copied code.

    The signals that ask a run to stop are blocked before Python begins, so that none is lost or fatal during the imports.
    """
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(code), *([inherited] if inherited else [])])
    settings = [f"PYTHONPATH={path}", "PYTHONSAFEPATH=1"]  # safe: the working directory may hold newer code by then
    return shlex.join(["env", "--block-signal=USR2", "--block-signal=TERM", *settings, sys.executable])
