"""Where a run stands, for a person to read: decided from its own run.json and from what Slurm says, together.

Slurm's word alone never proves success, and run.json alone never proves that a run lives. Standard library only.
"""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flash_grpo.cluster import slurm
from flash_grpo.cluster.bill import bill_of
from flash_grpo.cluster.last_words import LOST_A_RANK, last_words
from flash_grpo.cluster.slurm import Answer, Queued, Start
from flash_grpo.records import submissions
from flash_grpo.records.files import MANIFEST, RECORDS, read_manifest, read_newest_first
from flash_grpo.records.schema import RunManifest

ALIVE = ("waiting", "requeued", "starting", "running", "preempted", "suspended", "ending")
OVER = ("complete", "failed", "cancelled", "interrupted", "unfinished", "unknown")

OTHERS = {"SUSPENDED": "suspended", "STOPPED": "suspended"}
OTHERS |= dict.fromkeys(("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"), "waiting")
WAITS = {
    "None": "Slurm has not looked at it yet",
    "Resources": "no free nodes",
    "Priority": "others come first",
    "BeginTime": "may start again soon",
    "JobArrayTaskLimit": "as many of this array run as hydra.launcher.array_parallelism allows",
    "Dependency": "waits for another job",
    "Licenses": "waits for a licence",
    "DependencyNeverSatisfied": "waits for a job that has failed: cancel it",
    "JobHeldUser": "held by you: scontrol release {job}",
    "JobHeldAdmin": "held by an administrator",
    "Reservation": "waits for its reservation",
    "PartitionTimeLimit": "longer than the partition allows: lower hydra.launcher.timeout_min",
    "PartitionNodeLimit": "more nodes than the partition allows: lower hydra.launcher.nodes",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "BadConstraints": "no node has what it asks for",
    "launch failed requeued held": "could not be launched and is held: scontrol release {job}",
}
KINDS = {"QOS": "a limit of the QOS", "Max": "a limit of the account", "Assoc": "a limit of the account"}
KINDS |= {"ReqNodeNotAvail": "its nodes are down or reserved", "Nodes required": "its nodes are down or reserved"}
RUNAWAY_S = 1800  # how long the accounting may take to hear of an end
ENDS = {
    "PREEMPTED": "was preempted",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory: raise hydra.launcher.mem_gb",
    "TIMEOUT": "killed at its time limit before it had saved: raise hydra.launcher.signal_delay_s",
    "REQUEUED": "saved and left: preempted, or at its time limit",
    "DEADLINE": "past its deadline",
    "BOOT_FAIL": "its node did not boot",
    "COMPLETED": "Slurm says COMPLETED, but the run had not ended",
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A line of the table. job: the newest job's line of jobs.jsonl, None of a run that was not submitted to Slurm.

    why: why it waits or failed. iteration, cost: of the last record. rewards: of the last evaluation and the last
    iteration. billed_seconds: device-seconds that Slurm charges, up to now or, where it could not be asked, by the bill in
    run.json; useful_seconds: the suite's own of them.
    restarts: starts after the first. age: seconds since the last record was written.
    """

    run: str
    job: dict[str, Any] | None
    state: str
    why: str = ""
    iteration: int | None = None
    evaluation_reward: float | None = None
    training_reward: float | None = None
    device_seconds: float = 0.0
    billed_seconds: float | None = None
    useful_seconds: float = 0.0
    restarts: int = 0
    age: float | None = None


def standings(study: Path, answer: Answer | None) -> list[Standing]:
    """Of every run that was submitted, in order, then of the other runs in the study. None: Slurm could not be asked."""
    submitted = submissions.submitted(study)
    others = sorted(path.parent.name for path in study.glob(f"*/{MANIFEST}") if path.parent.name not in submitted)
    return [standing(study / run, submitted.get(run, []), answer) for run in [*submitted, *others]]


def standing(run_dir: Path, jobs: list[dict[str, Any]], answer: Answer | None) -> Standing:
    """jobs: the run's lines of jobs.jsonl, oldest first. Slurm was asked before the files are read: a run that has left
    the queue has written its last word."""
    manifest, newest = read_manifest(run_dir), jobs[-1] if jobs else None
    state, why = _state(manifest, newest, answer)
    bill = (bill_of(run_dir, jobs, answer) if answer else manifest and manifest.bill) or {}
    starts = bill.get("starts") or (manifest.starts if manifest else [])
    return Standing(
        run=run_dir.name,
        job=newest,
        state=state,
        why=why,
        billed_seconds=bill.get("device_seconds"),
        useful_seconds=bill.get("useful_device_seconds", 0.0),
        restarts=max(0, len(starts) - 1),
        **_records(run_dir),
    )


def _records(run_dir: Path) -> dict[str, Any]:
    path, last = run_dir / RECORDS, {}
    for record in read_newest_first(run_dir):
        last.setdefault(record["kind"], record)
        if "evaluation" in last and "iteration" in last:
            break
    told = max((one for one in last.values() if "cost" in one), key=lambda one: one["iteration"], default=None)
    if told is None:
        return {}
    return {
        "iteration": told["iteration"],
        "device_seconds": told["cost"]["device_seconds"],
        "evaluation_reward": last.get("evaluation", {}).get("reward_mean"),
        "training_reward": last.get("iteration", {}).get("reward_mean"),
        "age": time.time() - path.stat().st_mtime,
    }


# -- the state ---------------------------------------------------------------------------------------------------------


def _state(manifest: RunManifest | None, job: dict[str, Any] | None, answer: Answer | None) -> tuple[str, str]:
    if job is None or answer is None:
        return _by_itself(manifest)
    past = answer.starts.get(job["job_id"], [])
    queued = answer.queued.get(job["job_id"])
    if queued:
        return _queued(manifest, queued, [one for one in past if one.over])
    return _over(manifest, job, past, {_array(known) for known in answer.starts})


def _by_itself(manifest: RunManifest | None) -> tuple[str, str]:
    """What run.json says, where Slurm says nothing."""
    if manifest is None:
        return "unknown", "it has written nothing"
    if manifest.status == "running" and not manifest.reason:
        return "unfinished", "runs still, or was killed"
    state = {"completed": "complete", "failed": "failed"}.get(manifest.status, "interrupted")
    return state, _short(manifest.reason)


def _short(reason: str) -> str:
    """Of "interrupted: saved at iteration 7; the same command continues this run" what the state does not say."""
    return reason.removeprefix("interrupted: ").partition("; the same")[0]


def _queued(manifest: RunManifest | None, queued: Queued, past: list[Start]) -> tuple[str, str]:
    if queued.state == "PENDING":
        before = f"{ENDS.get(past[-1].state, past[-1].state)}; " if past else ""
        return "requeued" if past else "waiting", before + _waits_for(queued)
    if queued.state == "COMPLETING":
        return "ending", ""
    if queued.state != "RUNNING":  # whatever the queue lists lives, and must not be submitted again
        return OTHERS.get(queued.state, "starting"), queued.state
    if not manifest or not _is_of_this_start(manifest, queued):
        return "starting", f"since {_local(queued.begin, '%H:%M:%S')}"
    if manifest.status != "running":
        return "ending", manifest.reason
    return ("preempted", "saves, and is queued again") if queued.preempted else ("running", "")


def _over(manifest: RunManifest | None, job: dict[str, Any], past: list[Start], arrays: set[str]) -> tuple[str, str]:
    """Of a job that has left the queue. arrays: all of which the accounting knows something."""
    last = past[-1] if past else None
    spoke = manifest is not None and _has_started(manifest, job, past)
    if spoke and manifest.status == "completed":
        return "complete", f"though Slurm says {last.state}" if last and last.over and last.state != "COMPLETED" else ""
    reason = _short(manifest.reason) if spoke else ""
    if LOST_A_RANK.search(reason):  # Slurm, or the log of another rank, tells more
        reason = ""
    if reason and manifest.status == "failed":  # which the accounting may not know yet
        return "failed", reason
    if last is None and _array(job["job_id"]) in arrays:  # Slurm forgets an element that was cancelled while it waited
        return "cancelled", "before it started"
    if last is None:
        return "unknown", f"Slurm knows no job {job['job_id']} any more"
    if not last.over and _silence_s(job) < RUNAWAY_S:
        return "ending", "has left the queue; the accounting does not know its end yet"
    if not last.over:
        return "failed", "has left the queue; the accounting never heard of its end (sacctmgr show runawayjobs)"
    if last.state == "CANCELLED":
        return "cancelled", reason or ("" if last.seconds else "before it started")
    if reason:
        return "interrupted", reason
    return "failed", ENDS.get(last.state) or last_words(_texts(job))


def _silence_s(job: dict[str, Any]) -> float:
    """Since the job's logs were last written to, or since it was submitted."""
    said = [path.stat().st_mtime for path in logs(job) if path.exists()]
    return time.time() - max([job["submitted"], *said])


def _array(job: str) -> str:
    """12 of 12_3, and of 12_[4-7]."""
    return job.split("_")[0]


def _waits_for(queued: Queued) -> str:
    kind = next((told for prefix, told in KINDS.items() if queued.reason.startswith(prefix)), "")
    told = WAITS.get(queued.reason, f"{kind} ({queued.reason})" if kind else queued.reason)
    expected = "" if queued.begin in slurm.NEVER else f", expected {_local(queued.begin, '%Y-%m-%d %H:%M:%S')}"
    return told.format(job=queued.job) + expected


def _local(time: str, form: str) -> str:
    return datetime.fromtimestamp(slurm.moment(time)).strftime(form)


def _has_started(manifest: RunManifest, job: dict[str, Any], past: list[Start]) -> bool:
    """Whether run.json speaks of this job's last start or, where the run went on without Slurm, of something after it."""
    last = manifest.starts[-1]
    if submissions.job_of(last) == job["job_id"]:
        return submissions.restart_of(last) >= sum(bool(one.start) for one in past) - 1
    return datetime.strptime(last["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp() > job["submitted"]


def _is_of_this_start(manifest: RunManifest, queued: Queued) -> bool:
    last = manifest.starts[-1]
    return submissions.job_of(last) == queued.job and submissions.restart_of(last) == queued.restarts


# -- logs --------------------------------------------------------------------------------------------------------------


def logs(job: dict[str, Any]) -> list[Path]:
    """Of each rank, in order; those that have not started have none."""
    return [Path(job["folder"]) / f"{job['job_id']}_{rank}_log.out" for rank in range(job["ranks"])]


def _texts(job: dict[str, Any]) -> list[str]:
    return [path.read_text(errors="replace") for path in logs(job) if path.exists()]
