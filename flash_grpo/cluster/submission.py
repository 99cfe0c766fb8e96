"""Submit a sweep to Slurm as one job or job array, and submit parts of it again exactly as they were."""

import dataclasses
import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from flash_grpo.cluster.node import run_again
from flash_grpo.cluster.ownership import refuse_foreign_files
from flash_grpo.cluster.slurm import HOW_SLURM_IS_FOUND, UNREACHED, NoSlurmError
from flash_grpo.records.files import RESTORE, read_as, write_atomically
from flash_grpo.records.submissions import (
    Intended,
    JobRequest,
    SubmittedRun,
    append_submitted,
    array_of,
    forget_intended,
    write_intended,
)

UNSURE = ("Socket timed out", "Zero Bytes were transmitted")  # sbatch's words after which Slurm may still have the jobs
LIMIT = re.compile(r"^(QOS|Assoc|Max|Grp|Part)\w*(Limit|Jobs|PerAccount|PerUser)")  # QOSMaxSubmitJobPerUserLimit
SITE = ("account", "partition", "qos", "constraint", "reservation")  # settings that a site may have defaults for


class RefusedError(ValueError):
    """The reason, in one line, why sbatch does not accept a job. limit: Slurm's word for the site's limit, '' for none."""

    def __init__(self, reason: str, limit: str = ""):
        super().__init__(reason)
        self.limit = limit


def submit(folder: Path, request: JobRequest, runs: list[SubmittedRun]) -> list[Any]:
    """Submit runs, each of which executes its `point`, as one array, and record them; return submitit's jobs.

    folder: the study's .submitit, whose lock must be held. runs: their job_id and folder do not matter. RefusedError if Slurm
    or submitit refuses the request; NoSlurmError if Slurm does not answer: if it may have the jobs all the same,
    `orphans.adopt` finds that out, as it does after the death of this process.
    """
    now = time.time()
    intended = [dataclasses.replace(run, job_id="", folder="", submitted=now) for run in runs]
    write_intended(folder, Intended(time=now, request=request, runs=intended))
    try:
        jobs = sbatch(request, [run.point for run in runs])
    except (RefusedError, NoSlurmError) as error:
        if not any(words in str(error) for words in UNSURE):
            forget_intended(folder)
        raise
    submitted = _placed(runs, jobs)
    write_job_files(folder, request, submitted)
    append_submitted(folder, submitted)
    forget_intended(folder)
    return jobs


def sbatch(request: JobRequest, points: list[str]) -> list[Any]:
    """Submit points, see `write_point`, as one array; return submitit's jobs. RefusedError and NoSlurmError as in `submit`."""
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
            return executor.map_array(run_again, points)
    except submitit.core.utils.FailedJobError as error:
        said = [line.removeprefix("sbatch: error: ") for line in str(error).strip().splitlines()]
        if any(words in line for words in UNREACHED for line in said):
            raise NoSlurmError(said[-1]) from error
        limit = next((line for line in said if line.isalnum() and LIMIT.search(line)), "")
        limit = "MaxArraySize" if "Invalid job array" in said[-1] else limit
        raise RefusedError(f"{said[-1]} ({limit})" if limit else said[-1], limit) from error


def write_job_files(folder: Path, request: JobRequest, runs: list[SubmittedRun]) -> None:
    """Write the files that jobs need and lack: what was asked of Slurm, and the pickle that submitit executes.

    folder: the study's .submitit. runs: of one array.
    """
    import submitit

    write_atomically(_request_file(folder, runs[0].job_id), json.dumps(dataclasses.asdict(request), indent=1) + "\n")
    for run in runs:
        pickle = submitit.core.utils.JobPaths(run.folder, run.job_id).submitted_pickle
        if not pickle.exists():
            pickle.parent.mkdir(parents=True, exist_ok=True)
            submitit.core.utils.DelayedSubmission(run_again, run.point).dump(pickle)


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

    folder: the study's .submitit, whose lock must be held. Runs that were submitted as one array become one array again.
    RefusedError, which says what was submitted before, and NoSlurmError as in `submit`; NotOursError before anything is
    submitted, if others could have written what would run; DamagedFileError, if what was asked of Slurm cannot be read.
    """
    refuse_foreign_files(folder, _executed(folder, runs))
    by_request: dict[Path, list[SubmittedRun]] = {}
    for run in runs:
        by_request.setdefault(_request_file(folder, run.job_id), []).append(run)
    requests = [(_read_request(path), old) for path, old in by_request.items()]
    added: list[SubmittedRun] = []
    for request, old in requests:
        try:
            jobs = submit(folder, request, old)
        except RefusedError as error:
            raise RefusedError(f"{error}{_before(added, runs)}", error.limit) from error
        except NoSlurmError as error:
            raise NoSlurmError(f"{error}{_before(added, runs)}") from error
        added += _placed(old, jobs)
    return added


def _before(added: list[SubmittedRun], runs: list[SubmittedRun]) -> str:
    """Say what was submitted before a refusal, and what was not."""
    if not added:
        return ""
    names = {run.run for run in added}
    done = ", ".join(f"{run.run} as job {run.job_id}" for run in added)
    return (
        f"; submitted before that: {done}; not submitted: {', '.join(run.run for run in runs if run.run not in names)}"
    )


def _read_request(path: Path) -> JobRequest:
    return read_as(JobRequest, path, f"{RESTORE}, or give the sweep's command again to submit the runs")


def write_point(folder: Path, name: str, function: Callable[..., Any], *arguments: Any) -> Path:
    """Write what the job of a run is to execute, a pickle of its own; return its path. name: of the run."""
    import submitit

    path = (folder / "points" / f"{name}-{uuid.uuid4().hex[:12]}.pkl").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    submitit.core.utils.DelayedSubmission(function, *arguments).dump(path)
    return path


def _placed(runs: list[SubmittedRun], jobs: list[Any]) -> list[SubmittedRun]:
    """Return the runs as they were submitted now, as submitit's `jobs`."""
    return [
        dataclasses.replace(run, job_id=job.job_id, folder=str(job.paths.folder), submitted=time.time())
        for run, job in zip(runs, jobs, strict=True)
    ]


def _request_file(folder: Path, job: str) -> Path:
    return folder / f"{array_of(job)}.json"
