"""A submission to Slurm: one job or job array, and beside it what it takes to submit the same again."""

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from flash_grpo.cluster.node import run_again

JOBS = "jobs.jsonl"
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")  # how Slurm is found
SITE = ("account", "partition", "qos", "constraint", "reservation")


class RefusedError(ValueError):
    """sbatch takes no such job; says why in a line."""


def submit(folder: Path, shape: dict[str, Any], function: Callable[..., Any], points: Sequence[tuple]) -> list[Any]:
    """One job for each of `points`, the arguments of `function`.

    folder: the study's .submitit. shape: `folder`, submitit's for a job; `python`, the command that starts a rank's
    interpreter; `parameters`, submitit's. It is written to `folder`/<job or array>.json. RefusedError if Slurm refuses.
    """
    import submitit

    executor = submitit.AutoExecutor(shape["folder"], cluster="slurm", slurm_python=shape["python"])
    try:
        executor.update_parameters(**shape["parameters"])
    except NameError as error:
        unknown = str(error).partition("'slurm_")[2].partition("'")[0]
        raise RefusedError(
            f"submitit has no parameter {unknown}; what else sbatch takes goes to "
            f"+hydra.launcher.additional_parameters.{unknown}=..."
        ) from error
    try:
        with _own_environment(shape["parameters"]), redirect_stderr(io.StringIO()):  # which submitit would print, too
            jobs = executor.map_array(function, *zip(*points, strict=True))
    except submitit.core.utils.FailedJobError as error:
        raise RefusedError(str(error).strip().splitlines()[-1]) from error
    _shape_file(folder, jobs[0].job_id).write_text(json.dumps(shape, indent=1) + "\n")
    return jobs


@contextmanager
def _own_environment(parameters: dict[str, Any]) -> Iterator[None]:
    """Without what an allocation that this is called in, or sbatch's own variables, would say instead of `parameters`.
    A site's defaults for what these leave open stay."""
    import submitit

    asked = parameters.get("slurm_additional_parameters", {})
    open_to_the_site = [name for name in SITE if parameters.get(f"slurm_{name}", asked.get(name)) is None]
    names = [*KEPT, *(f"SBATCH_{name.upper()}" for name in open_to_the_site)]
    kept = {name: os.environ[name] for name in names if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def resubmit(folder: Path, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Submits again what lines of jobs.jsonl say was submitted: the same code, configuration and resources. What was
    one array is one array. Returns the new lines, which it appends to jobs.jsonl."""
    arrays: dict[Path, list[dict[str, Any]]] = {}
    for line in lines:
        arrays.setdefault(_shape_file(folder, line["job_id"]), []).append(line)
    added = []
    for shape, old in arrays.items():
        jobs = submit(folder, json.loads(shape.read_text()), run_again, [(line["point"],) for line in old])
        added += [{**line, **_found_by(job)} for line, job in zip(old, jobs, strict=True)]
        write_jobs(folder, added[-len(jobs) :])
    return added


def job_line(job: Any, **told: Any) -> dict[str, Any]:
    """The line of jobs.jsonl of a job that is submitted for the first time. point: the pickle of what it runs."""
    return {**told, **_found_by(job), "ranks": job.num_tasks, "point": str(job.paths.submitted_pickle)}


def write_jobs(folder: Path, lines: list[dict[str, Any]]) -> None:
    """One line per submitted run: what finds it again without this process."""
    path = folder / JOBS
    length = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab", buffering=0) as file:  # at once: others read it
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError:
        os.truncate(path, length)
        raise


def _found_by(job: Any) -> dict[str, Any]:
    return {"job_id": job.job_id, "folder": str(job.paths.folder), "submitted": time.time()}


def _shape_file(folder: Path, job: str) -> Path:
    return folder / f"{job.split('_')[0]}.json"
