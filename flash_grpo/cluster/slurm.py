"""Ask Slurm about a study's jobs: squeue for those that wait or run, sacct for every start. Standard library only.

Each command is called once for all jobs of the study. A job that is requeued keeps its id, so its starts are told apart by
their times. Answers do not depend on who asks: times are UTC everywhere, which no clock that is put back an hour disturbs,
and Slurm's commands do not see the variables by which a shell changes what they print (`environment`).
"""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from flash_grpo.records.known_jobs import known_jobs
from flash_grpo.records.submissions import SubmittedRun, array_of

QUEUE = ("JobArrayID", "State", "Reason", "RestartCnt", "StartTime", "EndTime", "PreemptTime")
ACCOUNTING = ("JobID", "State", "Start", "End", "ElapsedRaw", "AllocTRES")
LEFT = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)
HOW_SLURM_IS_FOUND = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
OPTIONS_OF_A_SHELL = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SACCTMGR_", "SINFO_", "SCONTROL_", "SCANCEL_")
UNREACHED = ("Unable to contact", "Socket timed out", "Zero Bytes were transmitted", "controller in standby")
NEVER = ("N/A", "None", "Unknown")  # Slurm's words for a time that does not exist
PATIENCE_S = 60
CLOCKS_DIFFER_S = 60  # how far the clocks of two nodes may be apart


class NoSlurmError(RuntimeError):
    """The reason, in one line, why Slurm could not be asked."""


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job that Slurm's controller knows: it waits, runs or, for some minutes (MinJobAge), has left the queue.

    job: Slurm's name of the job. state: Slurm's word, one of LEFT if it has left the queue. reason: Slurm's word for why the
    job waits. restarts: how often Slurm has restarted it. begin: when it began or, if Slurm expects a time, will begin, UTC.
    end: when it ended or must end, UTC. preempted: True once Slurm has asked it to make room for another job.
    """

    job: str
    state: str
    reason: str
    restarts: int
    begin: str
    end: str = "N/A"
    preempted: bool


@dataclass(frozen=True, kw_only=True)
class JobStart:
    """One start of a job, as Slurm's accounting lists it.

    job: Slurm's name of the job. state: Slurm's word. start: UTC, '' if the job waits or was cancelled while it waited.
    over: True if it has ended. seconds: elapsed wall seconds, up to now if it still runs. devices: GPUs allocated.
    """

    job: str
    state: str
    start: str
    over: bool
    seconds: int
    devices: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Slurm's knowledge of a study's jobs.

    queued: the jobs that wait or run, by name. starts: by job, oldest first. asked: when Slurm was asked, seconds since 1970:
    it cannot know of later jobs. left: the jobs that have left the queue and that the controller still remembers, by name.
    no_accounting: why the accounting does not answer, '' if it does; `starts` is then empty.
    """

    queued: dict[str, Queued]
    starts: dict[str, list[JobStart]]
    asked: float = float("inf")
    left: dict[str, Queued] = field(default_factory=dict)
    no_accounting: str = ""

    @cached_property
    def accounted_arrays(self) -> set[str]:
        """The arrays of which the accounting has entries, and the jobs that are in no array."""
        return {array_of(job) for job in self.starts}


def ask_about(study: Path) -> Answer:
    """Ask squeue and sacct about all jobs of the study. NoSlurmError if squeue does not answer."""
    asked = time.time()
    jobs = {run.job_id: run for runs in known_jobs(study).values() for run in runs}
    if not jobs:
        return Answer(queued={}, starts={}, asked=asked)
    arrays = ",".join(sorted({run.array_id for run in jobs.values()}))
    known = _queue(arrays)  # before sacct: a job that leaves the queue between the two counts as alive, not as lost
    queued = {name: job for name, job in known.items() if job.state not in LEFT}
    left = {name: job for name, job in known.items() if name not in queued}
    try:
        accounting = _accounting(arrays)
    except NoSlurmError as error:
        return Answer(queued=queued, starts={}, asked=asked, left=left, no_accounting=str(error))
    starts = {job: _since_submission(listed, jobs.get(job)) for job, listed in accounting.items()}
    return Answer(queued=queued, starts={job: kept for job, kept in starts.items() if kept}, asked=asked, left=left)


def _since_submission(starts: list[JobStart], run: SubmittedRun | None) -> list[JobStart]:
    """Drop accounting entries older than our submission: Slurm reuses job ids, so an older job may have had this one."""
    since = run.submitted - CLOCKS_DIFFER_S if run else 0
    return [start for start in starts if not start.start or seconds_since_1970(start.start) >= since]


def seconds_since_1970(time: str) -> float:
    """Convert a time that Slurm printed, UTC."""
    return datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp()


def _queue(arrays: str) -> dict[str, Queued]:
    """Ask for the jobs that the controller knows, by name, those that have left the queue too."""
    done = _call("squeue", "-h", "-r", "-t", "all", "-j", arrays, "-O", ",".join(f"{name}:|" for name in QUEUE))
    if done.returncode and "Invalid job id" in done.stderr:  # squeue's answer for a single job that has left the queue
        return {}
    rows = [line.split("|") for line in _output(done).splitlines()]
    return {
        job: Queued(
            job=job,
            state=state,
            reason=reason,
            restarts=int(restarts),
            begin=begin,
            end=end,
            preempted=preempted not in NEVER,
        )
        for job, state, reason, restarts, begin, end, preempted, *_ in rows
    }


def _accounting(arrays: str) -> dict[str, list[JobStart]]:
    done = _call("sacct", "-X", "--duplicates", "-nP", "-j", arrays, "-o", ",".join(ACCOUNTING))
    starts: dict[str, list[JobStart]] = {}
    for line in _output(done).splitlines():
        start = _job_start(line)
        starts.setdefault(start.job, []).append(start)
    return {job: sorted(listed, key=lambda start: start.start or "never") for job, listed in starts.items()}


def _job_start(line: str) -> JobStart:
    job, state, start, end, seconds, resources = line.split("|")
    gpus = re.search(r"gres/gpu=(\d+)", resources)
    return JobStart(
        job=job,
        state=state.split()[0],  # "CANCELLED by 1000"
        start="" if start in NEVER else start,
        over=end not in NEVER,
        seconds=int(seconds),
        devices=int(gpus[1]) if gpus else 0,
    )


def environment() -> dict[str, str]:
    """Return the environment in which Slurm's commands are called: this process's, without the variables that replace options
    of the commands (SQUEUE_STATES, SLURM_TIME_FORMAT, …), but with those that say which Slurm is meant.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if name in HOW_SLURM_IS_FOUND or not name.startswith(OPTIONS_OF_A_SHELL)
    }
    return {**own, "TZ": "UTC", "SLURM_TIME_FORMAT": "standard"}


def output_of(*command: str) -> str:
    """Call one of Slurm's commands and return what it printed. NoSlurmError if it is missing, fails or does not answer."""
    return _output(_call(*command))


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which(command[0]):
        raise NoSlurmError(f"{command[0]} is not on this machine")
    try:
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise NoSlurmError(f"{command[0]} gives no answer in {PATIENCE_S} s") from error


def _output(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        raise NoSlurmError((done.stderr.strip() or f"{done.args[0]} failed").splitlines()[-1])
    return done.stdout
