"""List all Slurm jobs of a study's runs: those of jobs.jsonl, and those that only a run itself has noted."""

import os
import re
from datetime import datetime
from pathlib import Path

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import MANIFEST, read_manifest
from flash_grpo.records.schema import TIME
from flash_grpo.records.submissions import FOLDER, SubmittedRun, read_submitted

JOB = re.compile(r"\d+(_\d+)?")


def known_jobs(study: Path) -> dict[str, list[SubmittedRun]]:
    """Return each run's jobs, oldest first: as `read_submitted`, and jobs that jobs.jsonl lacks and run.json names.

    jobs.jsonl lacks a job if its launcher died too early or a line is damaged. Of such jobs, only those count that began from
    this study's .submitit: a run may also have been started by hand inside somebody's allocation.
    """
    runs = read_submitted(study)
    unlisted = _unlisted(study / FOLDER, {job.job_id for jobs in runs.values() for job in jobs})
    if unlisted:
        for path in sorted(study.glob(f"*/{MANIFEST}")):
            if found := _noted(study, path.parent, unlisted):
                jobs = runs.setdefault(path.parent.name, [])
                jobs[:] = sorted([*jobs, *found], key=lambda job: job.submitted)
    return runs


def _unlisted(folder: Path, listed: set[str]) -> set[str]:
    """Return the jobs for which .submitit holds what they execute, but for those that are listed."""
    names = os.listdir(folder) if folder.is_dir() else []
    others = [name for name in names if JOB.fullmatch(name) and name not in listed]
    return {name for name in others if (folder / name / f"{name}_submitted.pkl").exists()}


def _noted(study: Path, run_dir: Path, jobs: set[str]) -> list[SubmittedRun]:
    """Return those of the jobs that the run's run.json names, each with the time of its first start there."""
    try:
        manifest = read_manifest(run_dir)
    except DamagedFileError:  # the run's state names the damage
        return []
    found: dict[str, SubmittedRun] = {}
    for start in manifest.starts if manifest else []:
        if start.job and start.job.name in jobs and manifest:
            folder = str((study / FOLDER / start.job.name).absolute())
            began = datetime.strptime(start.time, TIME).timestamp()
            job = SubmittedRun(
                run=run_dir.name, job_id=start.job.name, folder=folder, submitted=began, ranks=manifest.world_size
            )
            found.setdefault(job.job_id, job)
    return list(found.values())
