"""What was submitted to Slurm, by the study's own files."""

import json
from pathlib import Path
from typing import Any


def submitted(study: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of jobs.jsonl by run, oldest first: the newest job of a run is its last."""
    runs: dict[str, list[dict[str, Any]]] = {}
    path = study / ".submitit" / "jobs.jsonl"
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):  # else it is being written
            runs.setdefault((told := json.loads(line))["run"], []).append(told)
    return runs


def job_of(start: dict[str, Any]) -> str | None:
    """The job that one of run.json's `starts` belongs to, by the name that jobs.jsonl has for it."""
    array, element = start["slurm"].get("SLURM_ARRAY_JOB_ID"), start["slurm"].get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array else start["slurm"].get("SLURM_JOB_ID")


def restart_of(start: dict[str, Any]) -> int:
    """How often that job had been restarted then."""
    return int(start["slurm"].get("SLURM_RESTART_COUNT", 0))
