"""Read and write `<study>/.submitit/jobs.jsonl`, which lists the runs that were submitted to Slurm, and what is about to be."""

import dataclasses
import json
import logging
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flash_grpo.records.checked import DamagedFileError, from_json, parsed
from flash_grpo.records.files import RESTORE, read_as, write_atomically
from flash_grpo.records.full_disk import naming_full_disk
from flash_grpo.records.identity import directory_name

log = logging.getLogger(__name__)
FOLDER, JOBS, INTENDED = ".submitit", "jobs.jsonl", "intended.json"


@dataclass(frozen=True, kw_only=True)
class SubmittedRun:
    """One run in one Slurm job: a line of jobs.jsonl. A run that was submitted again has several lines.

    run: the run's name. directory: the run's directory, relative to the directory that the sweep was submitted from.
    overrides: the run's part of the sweep's command line. code: the copy of the code that every start of the job imports.
    job_id: Slurm's name of the job, '12_3' for element 3 of array 12. folder: where submitit writes the ranks' logs.
    submitted: seconds since 1970. ranks: number of tasks.
    point: the pickle that the job runs; '' in lines of earlier versions, which cannot be submitted again.
    """

    run: str
    directory: str = ""
    overrides: list[str] = field(default_factory=list)
    code: str = ""
    job_id: str
    folder: str
    submitted: float
    ranks: int
    point: str = ""

    @property
    def array_id(self) -> str:
        """Return the number of the job's array, or of the job itself if it is not part of one."""
        return array_of(self.job_id)


def array_of(job_id: str) -> str:
    """Return the array's number, or the job's own if it is not part of an array.

    >>> [array_of(job_id) for job_id in ("12_3", "12_[4-7]", "12")]
    ['12', '12', '12']
    """
    return job_id.split("_")[0]


def read_submitted(study: Path) -> dict[str, list[SubmittedRun]]:
    """Read the study's jobs.jsonl: for each run its lines, oldest first, so that the last one is its newest job.

    A last line that is still being written is skipped. A damaged line is named in a warning, once, and left out.
    DamagedFileError if the file cannot be read at all.
    """
    runs: dict[str, list[SubmittedRun]] = {}
    path = study / FOLDER / JOBS
    try:
        *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read ({error.strerror})", RESTORE) from error
    for number, line in enumerate(lines, 1):
        try:
            submitted = from_json(SubmittedRun, parsed(line))
            directory_name("run", submitted.run)  # it is joined to paths
        except ValueError as error:
            _warn_once(str(DamagedFileError(path, str(error), "its job is left out; delete the line", number)))
        else:
            runs.setdefault(submitted.run, []).append(submitted)
    return runs


@cache
def _warn_once(message: str) -> None:
    """Log a warning, once in a process: a table that is drawn every few seconds reads the same lines again."""
    log.warning(message)


def append_submitted(folder: Path, runs: list[SubmittedRun]) -> None:
    """Append `runs` to `folder`/jobs.jsonl, all or, on a full disk, with FullDiskError, none.

    folder: the study's .submitit. The jobs command finds the runs by these lines, without the launcher.
    """
    path = folder / JOBS
    there = path.read_bytes() if path.exists() else b""
    lines = "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in runs)
    if there and not there.endswith(b"\n"):  # cut short: what is added must not become part of that line
        lines = "\n" + lines
    try:
        with naming_full_disk(path), open(path, "ab", buffering=0) as file:
            file.write(lines.encode())  # one write, so that readers never see a mixture of two launchers
    except OSError:
        os.truncate(path, len(there))
        raise


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is asked of Slurm for every job of a sweep; written to `<study>/.submitit/<job or array>.json`.

    folder: submitit's for a job, with %j for the job's id. python: the command that starts a rank's interpreter.
    parameters: submitit's, by its own names.
    """

    folder: str
    python: str
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Intended:
    """What is about to be submitted: `<study>/.submitit/intended.json`, from before sbatch until jobs.jsonl has the jobs.

    If the file is left over, its launcher has died in between, and Slurm may have jobs that jobs.jsonl does not list.
    time: seconds since 1970. runs: in the order of the array's elements; their job_id and folder are ''.
    """

    time: float
    request: JobRequest
    runs: list[SubmittedRun]


def write_intended(folder: Path, intended: Intended) -> None:
    """Write what is about to be submitted. folder: the study's .submitit. OSError if it cannot be written."""
    write_atomically(folder / INTENDED, json.dumps(dataclasses.asdict(intended)) + "\n")
    (folder / INTENDED).chmod(0o600)


def read_intended(folder: Path) -> Intended | None:
    """Read what was about to be submitted when its launcher died; None if nothing was.

    DamagedFileError if it is damaged, or if somebody else could have written it: it names what jobs of this user execute.
    """
    path = folder / INTENDED
    if not path.exists():
        return None
    way_out = (
        "see by squeue whether Slurm has jobs of this study that its table lacks, cancel them, and delete the file"
    )
    if path.stat().st_uid != os.getuid() or path.stat().st_mode & 0o022:
        raise DamagedFileError(path, "may have been written by somebody else", way_out)
    return read_as(Intended, path, way_out)


def forget_intended(folder: Path) -> None:
    """Note that nothing is about to be submitted any more."""
    (folder / INTENDED).unlink(missing_ok=True)
