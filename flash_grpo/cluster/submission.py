"""Submit a sweep to Slurm as one job or job array, and submit parts of it again exactly as they were."""

import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flash_grpo.cluster.node import run_again
from flash_grpo.cluster.ownership import refuse_foreign_files
from flash_grpo.cluster.slurm import HOW_SLURM_IS_FOUND, UNREACHED, NoSlurmError
from flash_grpo.records.submissions import SubmittedRun, append_submitted, array_of

SITE = ("account", "partition", "qos", "constraint", "reservation")  # settings that a site may have defaults for


class RefusedError(ValueError):
    """The reason, in one line, why sbatch does not accept a job."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is asked of Slurm for every job of a sweep; written to `<study>/.submitit/<job or array>.json`.

    folder: submitit's for a job, with %j for the job's id. python: the command that starts a rank's interpreter.
    parameters: submitit's, by its own names.
    """

    folder: str
    python: str
    parameters: dict[str, Any]


def submit(
    folder: Path, request: JobRequest, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> list[Any]:
    """Submit one job for each tuple of `arguments` to `function`, as one array; return submitit's jobs.

    folder: the study's .submitit. RefusedError if Slurm or submitit refuses the request; NoSlurmError if Slurm does not answer.
    """
    import submitit

    executor = submitit.AutoExecutor(request.folder, cluster="slurm", slurm_python=request.python)
    try:
        executor.update_parameters(**request.parameters)
    except NameError as error:
        unknown = str(error).partition("'slurm_")[2].partition("'")[0]
        raise RefusedError(
            f"submitit has no parameter {unknown}; what else sbatch takes goes to "
            f"+hydra.launcher.additional_parameters.{unknown}=..."
        ) from error
    try:
        with _own_environment(request.parameters), redirect_stderr(io.StringIO()):  # submitit prints the error as well
            jobs = executor.map_array(function, *zip(*arguments, strict=True))
    except submitit.core.utils.FailedJobError as error:
        said = str(error).strip().splitlines()[-1]
        raise (NoSlurmError if any(words in said for words in UNREACHED) else RefusedError)(said) from error
    _request_file(folder, jobs[0].job_id).write_text(json.dumps(dataclasses.asdict(request), indent=1) + "\n")
    return jobs


def _executed(folder: Path, runs: list[SubmittedRun]) -> Iterator[Path]:
    """Yield the files that a resubmission executes: the job's pickle, the command of its interpreter, and its code."""
    yield from (Path(run.point) for run in runs)
    yield from {_request_file(folder, run.job_id) for run in runs}
    yield from sorted(
        path for code in {Path(run.code) for run in runs if run.code} for path in (code, *code.rglob("*"))
    )


@contextmanager
def _own_environment(parameters: dict[str, Any]) -> Iterator[None]:
    """Hide SLURM_* and SBATCH_* variables from sbatch, so that `parameters` alone decide, also inside an allocation.

    SBATCH_* defaults for settings that `parameters` leave open (account, partition, …) are kept.
    """
    import submitit

    additional = parameters.get("slurm_additional_parameters", {})
    left_open = [name for name in SITE if parameters.get(f"slurm_{name}", additional.get(name)) is None]
    names = [*HOW_SLURM_IS_FOUND, *(f"SBATCH_{name.upper()}" for name in left_open)]
    kept = {name: os.environ[name] for name in names if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def resubmit(folder: Path, runs: list[SubmittedRun]) -> list[SubmittedRun]:
    """Submit runs again with the same code, configuration and resources; return their new lines of jobs.jsonl.

    folder: the study's .submitit. Runs that were submitted as one array become one array again. RefusedError as in `submit`;
    NotOursError before anything is submitted, if others could have written what would run.
    """
    refuse_foreign_files(folder, _executed(folder, runs))
    by_request: dict[Path, list[SubmittedRun]] = {}
    for run in runs:
        by_request.setdefault(_request_file(folder, run.job_id), []).append(run)
    added: list[SubmittedRun] = []
    for path, old in by_request.items():
        request = JobRequest(**json.loads(path.read_text()))
        jobs = submit(folder, request, run_again, [(run.point,) for run in old])
        new = [dataclasses.replace(run, **_place(job)) for run, job in zip(old, jobs, strict=True)]
        append_submitted(folder, new)
        added += new
    return added


def submitted_run(job: Any, *, run: str, directory: str, overrides: list[str], code: Path) -> SubmittedRun:
    """Describe a run that was submitted for the first time, as submitit's `job`."""
    return SubmittedRun(
        run=run,
        directory=directory,
        overrides=overrides,
        code=str(code),
        ranks=job.num_tasks,
        point=str(job.paths.submitted_pickle),
        **_place(job),
    )


def _place(job: Any) -> dict[str, Any]:
    """Return the fields of `SubmittedRun` that change when a run is submitted again."""
    return {"job_id": job.job_id, "folder": str(job.paths.folder), "submitted": time.time()}


def _request_file(folder: Path, job: str) -> Path:
    return folder / f"{array_of(job)}.json"
