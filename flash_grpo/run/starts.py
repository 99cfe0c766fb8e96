"""Describe the starts of a run's program, and refuse to go on where none of them gets further."""

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import read_manifest
from flash_grpo.records.schema import TIME, ProgramStart
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run.manifest import git_state


@dataclass(frozen=True, kw_only=True)
class StartProgress:
    """Where a start of the program goes on. The fields are those of `ProgramStart`."""

    iteration: int
    pieces: int
    reached: int

    def is_further(self, start: ProgramStart) -> bool:
        """Return True if something was done since that earlier start began."""
        return self.pieces > start.pieces or self.reached > start.reached


def program_start(progress: StartProgress, set_aside: list[str]) -> ProgramStart:
    """Describe this start of the program. set_aside: as in `ProgramStart`."""
    job = SlurmJob.here()
    return ProgramStart(
        time=time.strftime(TIME),
        **asdict(progress),
        git=git_state(),
        host=platform.node(),
        pid=os.getpid(),
        slurm=job.variables if job else {},
        set_aside=set_aside,
    )


def last_start(directory: Path) -> str:
    """Describe the last start in the directory's run.json, ' (by run.json pid 7 on n1, …)'; '' if unknown.

    A process that holds the directory's lock is most likely this one.
    """
    try:
        there = read_manifest(directory)
    except DamagedFileError:
        return ""
    if there is None or not there.starts:
        return ""
    last = there.starts[-1]
    job = f", Slurm job {last.job.name}" if last.job else ""
    return f" (by run.json pid {last.pid} on {last.host}{job}, since {last.time})"


def endless_restarts(starts: list[ProgramStart], progress: StartProgress | None, limit: int) -> str:
    """Return why the job must stop, or '' if it may go on. It must stop after `limit` restarts in a row without progress.

    progress: None before the checkpoint is loaded; then every start that managed to write its own entry counts as progress.
    Only restarts by Slurm count: a restart by hand is a new job with a new id.
    """
    if (here := SlurmJob.here()) is None:
        return ""
    earlier = [(start, job) for start in starts if (job := start.job) and job.job_id == here.job_id]
    got_further = [job.restart_count for start, job in earlier if progress is None or progress.is_further(start)]
    idle = here.restart_count - 1 - max(got_further, default=-1)
    if idle < limit:
        return ""
    goal = (
        f"completing a micro-batch after iteration {progress.iteration}"
        if progress
        else "loading its checkpoint and model"
    )
    return f"started {idle} times without {goal}: giving up"
