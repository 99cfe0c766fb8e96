"""Find the jobs that a launcher submitted and died before it had recorded them, and record them.

sbatch is called with a script in the study's .submitit: Slurm names the script of every job, and so its study.
"""

import dataclasses
import getpass
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from flash_grpo.cluster import slurm
from flash_grpo.cluster.study_lock import LockedError, StudyLock
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.submissions import (
    FOLDER,
    INTENDED,
    Intended,
    append_submitted,
    array_of,
    forget_intended,
    read_intended,
    read_submitted,
)

log = logging.getLogger(__name__)
SBATCH_S = 60.0  # how long an sbatch whose caller has died may still be on its way
CLOCKS_DIFFER_S = 60


def adopt_if_free(study: Path) -> None:
    """Record the study's orphans, unless something is just being submitted, or the study is another user's.

    NoSlurmError as in `adopt`. A note of the submission that is damaged is named in a warning.
    """
    folder = study / FOLDER
    if not (folder / INTENDED).exists():
        return
    try:
        lock = StudyLock(folder, patience=0)
    except (LockedError, PermissionError):  # its holder records its own jobs, or the study is another user's
        return
    try:
        adopt(study)
    except DamagedFileError as damaged:
        log.warning(str(damaged))
    finally:
        lock.close()


def lock_to_submit(study: Path) -> StudyLock:
    """Take the study's lock and wait until nothing is unknown about a submission that was cut short.

    LockedError if another process holds the lock; NoSlurmError and DamagedFileError as in `adopt`.
    """
    lock = StudyLock(study / FOLDER)
    try:
        if not adopt(study):
            log.info("a submission was cut short; waiting up to %.0f s for its jobs to appear", SBATCH_S)
            while not adopt(study):
                time.sleep(1)
    except BaseException:
        lock.close()
        raise
    return lock


def adopt(study: Path) -> bool:
    """Record the jobs of a submission that was cut short. The study's lock must be held.

    Return False if sbatch may still be on its way: nothing is known yet. NoSlurmError if Slurm does not answer;
    DamagedFileError if the note of the submission is damaged.
    """
    folder = study / FOLDER
    intended = read_intended(folder)
    if intended is None:
        return True
    submitted = [run for runs in read_submitted(study).values() for run in runs]
    recorded = any(run.submitted >= intended.time for run in submitted)  # it died after the record
    found = _jobs_of(intended) - {run.array_id for run in submitted}
    if not found and not recorded and time.time() - intended.time < SBATCH_S:
        return False
    for job in sorted(found, key=int):
        _record(folder, intended, job)
    forget_intended(folder)
    return True


def _jobs_of(intended: Intended) -> set[str]:
    """Ask Slurm for the user's jobs since then whose script lies in the study: the numbers of arrays and of single jobs."""
    user, since = getpass.getuser(), intended.time - CLOCKS_DIFFER_S
    queue = slurm.output_of("squeue", "-h", "-t", "all", "-u", user, "-O", "ArrayJobID:|,SubmitTime:|,Command:|")
    rows = [line.split("|", 2) for line in queue.splitlines()]
    with suppress(slurm.NoSlurmError):  # no accounting, or one that does not keep scripts: the queue must do
        began = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        listed = slurm.output_of("sacct", "-X", "-nP", "-u", user, "-S", began, "-o", "JobID,Submit,SubmitLine")
        rows += [line.split("|", 2) for line in listed.splitlines()]
    place = intended.request.folder.partition("/%")[0] + "/"
    return {
        array_of(job)
        for job, submitted, command in rows
        if place in command and slurm.seconds_since_1970(submitted) >= since
    }


def _record(folder: Path, intended: Intended, array: str) -> None:
    """Give the runs their jobs, in jobs.jsonl, and the jobs their files, which they may still look for."""
    from flash_grpo.cluster.submission import write_job_files

    names = [f"{array}_{element}" for element in range(len(intended.runs))] if len(intended.runs) > 1 else [array]
    runs = [
        dataclasses.replace(run, job_id=job, folder=intended.request.folder.replace("%j", job))
        for run, job in zip(intended.runs, names, strict=True)
    ]
    write_job_files(folder, intended.request, runs)
    append_submitted(folder, runs)
    log.warning("job %s was submitted by a launcher that died before it had recorded it: recorded now", array)
