"""What Slurm says of a study's jobs, and its bill for them in `run.json`. Standard library only.

A job that is requeued keeps its id: its starts are told apart by their time. Whatever is asked is asked once for all jobs.
"""

import json
import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flash_grpo.records import MANIFEST, read_newest_first, write_atomically

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


def bill(run_dir: Path, jobs: list[dict[str, Any]], answer: Answer) -> dict[str, Any] | None:
    """`RunManifest.bill` of a run as of now, over all its jobs; None where none has started.

    Starts that an earlier bill knows and the accounting has forgotten are kept.
    """
    began = [(one, line["ranks"]) for line in jobs for one in answer.starts.get(line["job_id"], []) if one.start]
    entries = [_entry(one, ranks) for one, ranks in began]
    known = {(one["job"], one["start"]): one for one in [*(_written(run_dir) or {}).get("starts", []), *entries]}
    if not known:
        return None
    starts = sorted(known.values(), key=lambda one: one["start"])
    total = sum(one["seconds"] * one["devices"] for one in starts)
    useful = min(total, _useful(run_dir))
    return {
        "starts": starts,
        "device_seconds": total,
        "useful_device_seconds": useful,
        "lost_device_seconds": total - useful,
    }


def write_bills(study: Path, answer: Answer) -> list[str]:
    """Into the run.json of each run that is over, and only there: while a run lives, run.json is its own to write.

    Returns the runs that have left the queue and of whose end the accounting does not know yet.
    """
    unsettled = []
    for run, jobs in submitted(study).items():
        ids = [line["job_id"] for line in jobs]
        if any(job in answer.queued for job in ids) or not os.access(study / run / MANIFEST, os.W_OK):
            continue
        if not all(start.over for job in ids for start in answer.starts.get(job, [])):
            unsettled.append(run)
            continue
        with suppress(OSError):  # a full disk; the next one to ask writes it
            _write(study / run, bill(study / run, jobs, answer), ids)
    return unsettled


def _entry(start: Start, ranks: int) -> dict[str, Any]:
    entry = asdict(start)
    del entry["over"]
    return {**entry, "devices": start.devices or ranks}


def _written(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / MANIFEST
    return json.loads(path.read_text()).get("bill") if path.exists() else None


def _useful(run_dir: Path) -> float:
    """The suite's own device-seconds, by its last record: what the run's result took, work done twice counted once, and
    without those of reward servers, which are jobs of their own."""
    last = next((one for one in read_newest_first(run_dir) if "cost" in one), None)
    if last is None:
        return 0.0
    return last["cost"]["device_seconds"] + last["evaluation_seconds"] - last["cost"].get("server_seconds", 0.0)


def _write(run_dir: Path, found: dict[str, Any] | None, jobs: list[str]) -> None:
    manifest = json.loads((run_dir / MANIFEST).read_text())
    last = manifest.get("starts", [])[-1:]
    elsewhere = last and job_of(last[0]) not in jobs  # it went on without Slurm, and may live
    if found and manifest.get("bill") != found and not elsewhere:
        write_atomically(run_dir / MANIFEST, json.dumps({**manifest, "bill": found}, indent=1) + "\n")
