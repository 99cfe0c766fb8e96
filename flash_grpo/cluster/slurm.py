"""What Slurm says of a study's jobs, and its bill for them in `run.json`. Standard library only.

A job that is requeued keeps its id: its starts are told apart by their time. Whatever is asked is asked once for all jobs.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flash_grpo.records.submissions import submitted

QUEUE = ("JobArrayID", "State", "Reason", "RestartCnt", "StartTime", "PreemptTime")
ACCOUNTING = ("JobID", "State", "Start", "End", "ElapsedRaw", "AllocTRES")
NEVER = ("N/A", "None", "Unknown")
PATIENCE_S = 60
CLOCKS_DIFFER_S = 60  # by as much as this, those of the nodes


class NoSlurmError(RuntimeError):
    """Slurm could not be asked; says why in a line."""


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job that waits or runs. reason: Slurm's word for why it waits. begin: when it began or, if known, may begin
    (UTC). preempted: it has been asked to give way."""

    job: str
    state: str
    reason: str
    restarts: int
    begin: str
    preempted: bool


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a job in the accounting. start: UTC, empty where it waits or was cancelled waiting. seconds: elapsed,
    up to now where it still runs. devices: GPUs allocated."""

    job: str
    state: str
    start: str
    over: bool
    seconds: int
    devices: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What waits or runs, and every start that ever was, oldest first; by job id."""

    queued: dict[str, Queued]
    starts: dict[str, list[Start]]


def ask_of(study: Path) -> Answer:
    """NoSlurmError where squeue or sacct does not answer."""
    jobs = {line["job_id"]: line for lines in submitted(study).values() for line in lines}
    if not jobs:
        return Answer(queued={}, starts={})
    arrays = ",".join(sorted({job.split("_")[0] for job in jobs}))
    queued = _queue(arrays)  # first: what leaves the queue only now is not over yet
    starts = {job: _ours(starts, jobs.get(job)) for job, starts in _accounting(arrays).items()}
    return Answer(queued=queued, starts={job: ours for job, ours in starts.items() if ours})


def _ours(starts: list[Start], line: dict[str, Any] | None) -> list[Start]:
    """Less those of a job that had the same number before ours was submitted: numbers begin again."""
    since = line["submitted"] - CLOCKS_DIFFER_S if line else 0
    return [one for one in starts if not one.start or moment(one.start) >= since]


def moment(time: str) -> float:
    """Seconds since 1970 of a time that Slurm told."""
    return datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp()


def _queue(arrays: str) -> dict[str, Queued]:
    done = _command("squeue", "-h", "-r", "-j", arrays, "-O", ",".join(f"{name}:|" for name in QUEUE))
    if done.returncode and "Invalid job id" in done.stderr:  # of a single job that Slurm has forgotten: it is over
        return {}
    rows = [line.split("|") for line in _output(done).splitlines()]
    return {
        job: Queued(job=job, state=state, reason=reason, restarts=int(restarts), begin=begin, preempted=to not in NEVER)
        for job, state, reason, restarts, begin, to, *_ in rows
    }


def _accounting(arrays: str) -> dict[str, list[Start]]:
    done = _command("sacct", "-X", "--duplicates", "-nP", "-j", arrays, "-o", ",".join(ACCOUNTING))
    starts: dict[str, list[Start]] = {}
    for line in _output(done).splitlines():
        job, state, start, end, seconds, resources = line.split("|")
        gpus = re.search(r"gres/gpu=(\d+)", resources)
        one = Start(
            job=job,
            state=state.split()[0],
            start="" if start in NEVER else start,
            over=end not in NEVER,
            seconds=int(seconds),
            devices=int(gpus[1]) if gpus else 0,
        )
        starts.setdefault(job, []).append(one)
    return {job: sorted(of_job, key=lambda one: one.start or "never") for job, of_job in starts.items()}


def _command(*command: str) -> subprocess.CompletedProcess:
    """Told in UTC: the same whoever asks, and whichever clock was put back an hour."""
    if not shutil.which(command[0]):
        raise NoSlurmError(f"{command[0]} is not on this machine")
    environment = {**os.environ, "TZ": "UTC", "SLURM_TIME_FORMAT": "standard"}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise NoSlurmError(f"{command[0]} gives no answer in {PATIENCE_S} s") from error


def asked(*command: str) -> str:
    """What a command of Slurm's printed. NoSlurmError where it is missing, fails or does not answer."""
    return _output(_command(*command))


def _output(done: subprocess.CompletedProcess) -> str:
    if done.returncode:
        raise NoSlurmError((done.stderr.strip() or f"{done.args[0]} failed").splitlines()[-1])
    return done.stdout


# -- the bill ----------------------------------------------------------------------------------------------------------
