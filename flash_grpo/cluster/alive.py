"""Tell which runs of a study wait or run. Writes nothing."""

import platform
import shutil
from datetime import datetime
from pathlib import Path

from flash_grpo.cluster import slurm
from flash_grpo.cluster.bill import readable_manifest
from flash_grpo.cluster.run_state import ALIVE, RunState, run_states
from flash_grpo.cluster.study_lock import unsent
from flash_grpo.records.schema import TIME
from flash_grpo.records.submissions import FOLDER

OPEN = ("unfinished", "unknown")  # states of a run that Slurm was not asked about
CLOCK_S = 5.0  # by how much a process may seem to have begun after it wrote its start


def alive_runs(study: Path) -> set[str]:
    """Return the runs that Slurm or a launcher has, or a process of this machine is at work on.

    If Slurm does not answer now, all of its runs that are not over. A run without Slurm on another machine cannot be asked.
    """
    names, launcher = unsent(study / FOLDER)
    try:
        answer = slurm.ask_about(study)
    except slurm.NoSlurmError:
        answer = None
    silent = answer is None and bool(shutil.which("squeue"))
    found = {state.run for state in run_states(study, answer) if _is_alive(study, state, silent)}
    return found | set(names if launcher else [])


def _is_alive(study: Path, run: RunState, slurm_is_silent: bool) -> bool:
    if run.state in ALIVE or (run.job and slurm_is_silent and run.state in OPEN):
        return True
    return run.state == "unfinished" and _runs_here(study / run.run)


def _runs_here(directory: Path) -> bool:
    """Return True if the process of the run's last start is alive on this machine."""
    import psutil

    manifest, _ = readable_manifest(directory)
    start = manifest.starts[-1] if manifest and manifest.starts else None
    if start is None or start.host != platform.node():
        return False
    try:
        began = psutil.Process(start.pid).create_time()
    except (psutil.NoSuchProcess, ValueError):
        return False
    return began <= datetime.strptime(start.time, TIME).timestamp() + CLOCK_S  # else another process has its number
