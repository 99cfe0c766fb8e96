"""Decide the state of a run from its run.json and from Slurm's answer together. Standard library only.

Slurm's word alone never proves success, and run.json alone never proves that a run is alive.
"""

import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from flash_grpo.cluster import unaccounted
from flash_grpo.cluster.bill import bill_of, readable_manifest
from flash_grpo.cluster.deciding_job import deciding_job
from flash_grpo.cluster.last_records import LastRecords, last_records
from flash_grpo.cluster.last_words import LOST_A_RANK, last_words
from flash_grpo.cluster.logs import log_files, log_texts
from flash_grpo.cluster.reasons import ENDS, local_time, why_it_waits
from flash_grpo.cluster.slurm import Answer, JobStart, Queued
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import MANIFEST
from flash_grpo.records.full_disk import full_disk
from flash_grpo.records.known_jobs import known_jobs
from flash_grpo.records.schema import TIME, RunManifest
from flash_grpo.records.submissions import SubmittedRun

ALIVE = ("waiting", "requeued", "starting", "running", "preempted", "suspended", "ending", "lingering")
OVER = ("complete", "failed", "cancelled", "interrupted", "unfinished", "unknown")

QUEUE_STATES = {  # Slurm's states other than PENDING, RUNNING and COMPLETING; the rest are "starting"
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "REQUEUED": "waiting",
    "REQUEUE_HOLD": "waiting",
    "REQUEUE_FED": "waiting",
    "SPECIAL_EXIT": "waiting",
}
LINGERS_S = 120  # how long a job may stay RUNNING when its run has ended, unless the batch step's slurmstepd was killed
RUNAWAY_S = 1800  # how long the accounting may take to learn of a job's end


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run: one line of the jobs command's table.

    run: the run's name. job: the job that decides the state; None for a run that was not submitted to Slurm. jobs: all of its
    jobs, oldest first. live: those that wait or run, the newest last; empty if Slurm could not be asked.
    state: one of ALIVE and OVER.
    why: why it waits or failed, '' if there is nothing to say.
    billed_seconds: device-seconds that Slurm charges, up to now; from the bill in run.json if Slurm could not be asked.
    useful_seconds: the part of billed_seconds that the run's result took.
    restarts: starts after the first.
    """

    run: str
    job: SubmittedRun | None
    jobs: tuple[SubmittedRun, ...] = ()
    live: tuple[SubmittedRun, ...] = ()
    state: str
    why: str = ""
    last: LastRecords = field(default_factory=LastRecords)
    billed_seconds: float | None = None
    useful_seconds: float = 0.0
    restarts: int = 0


def run_states(study: Path, answer: Answer | None) -> list[RunState]:
    """Return the state of every submitted run, in the order of submission, then of the study's other runs.

    answer: None if Slurm could not be asked; then the states say what the runs wrote themselves.
    """
    submitted = known_jobs(study)
    others = sorted(path.parent.name for path in study.glob(f"*/{MANIFEST}") if path.parent.name not in submitted)
    return [run_state(study / run, submitted.get(run, []), answer) for run in [*submitted, *others]]


def run_state(run_dir: Path, jobs: list[SubmittedRun], answer: Answer | None) -> RunState:
    """Return the state of one run.

    jobs: all of the run's, oldest first. answer: must be older than this call. A run writes run.json before it
    leaves the queue, so the run.json of a job that `answer` does not list is then final. A file of the run that is damaged is
    named in `why`; the state is then Slurm's word alone.
    """
    manifest, damage = readable_manifest(run_dir)
    live = [job for job in jobs if answer and job.job_id in answer.queued]
    job = deciding_job(manifest, live or jobs, answer)
    state, why = _decide(manifest, job, answer)
    try:
        last = last_records(run_dir)
    except DamagedFileError as damaged:
        last, damage = LastRecords(), damage or str(damaged)
    written = manifest.bill if manifest else None
    bill = bill_of(run_dir, manifest, jobs, answer) if answer and not answer.no_accounting else written
    starts = len(bill.starts) if bill and bill.starts else len(manifest.starts) if manifest else 0
    return RunState(
        run=run_dir.name,
        job=job,
        jobs=tuple(jobs),
        live=tuple(live),
        state=state,
        last=last,
        why=damage or why + _other_jobs(job, live) or _set_aside(manifest),
        billed_seconds=bill.device_seconds if bill else None,
        useful_seconds=bill.useful_device_seconds if bill else 0.0,
        restarts=max(0, starts - 1),
    )


def _other_jobs(job: SubmittedRun | None, live: list[SubmittedRun]) -> str:
    return "".join(f"; also job {other.job_id}" for other in live if other is not job)


def _set_aside(manifest: RunManifest | None) -> str:
    """Say which checkpoints of the run were damaged and did not stop it; '' if none was."""
    entries = [entry for start in manifest.starts for entry in start.set_aside] if manifest else []
    names = list(dict.fromkeys(entry.partition(":")[0] for entry in entries))
    return f"its checkpoint {', '.join(names)} was damaged: went on from an older one" if names else ""


# -- the decision, a state and why --------------------------------------------------------------------------------------


def _decide(manifest: RunManifest | None, job: SubmittedRun | None, answer: Answer | None) -> tuple[str, str]:
    if job is None or answer is None:
        return _without_slurm(manifest)
    starts = answer.starts.get(job.job_id, [])
    if queued := answer.queued.get(job.job_id):
        return _in_queue(manifest, job, queued, [start for start in starts if start.over])
    if not starts and job.submitted > answer.asked:
        return "waiting", "was submitted just now"
    if answer.no_accounting:
        left = answer.left.get(job.job_id)
        wrote = manifest if manifest and _is_of_last_start(manifest, job, left.restarts if left else 0) else None
        return unaccounted.state_of(wrote.status if wrote else "", _own_reason(wrote), job, left)
    return _left_queue(manifest, job, starts, array_is_known=job.array_id in answer.accounted_arrays)


def _without_slurm(manifest: RunManifest | None) -> tuple[str, str]:
    """Decide by run.json alone."""
    if manifest is None:
        return "unknown", "it has written nothing"
    if manifest.status == "running" and not manifest.reason:
        return "unfinished", "runs still, or was killed"
    state = {"completed": "complete", "failed": "failed"}.get(manifest.status, "interrupted")
    return state, _short(manifest.reason)


def _short(reason: str) -> str:
    """Remove what the state says already: 'interrupted: saved at iteration 7; the same …' becomes 'saved at iteration 7'."""
    return reason.removeprefix("interrupted: ").partition("; the same")[0]


def _own_reason(manifest: RunManifest | None) -> str:
    """Return run.json's reason; '' if it only reports a lost peer: Slurm, or the log of another rank, says more."""
    reason = _short(manifest.reason) if manifest else ""
    return "" if LOST_A_RANK.search(reason) else reason


def _in_queue(
    manifest: RunManifest | None, job: SubmittedRun, queued: Queued, ended: list[JobStart]
) -> tuple[str, str]:
    """Decide for a job that squeue lists. ended: its starts that are over.

    The state is always one of ALIVE: a job in the queue must not be submitted again.
    """
    if queued.state == "PENDING":
        before = f"{ENDS.get(ended[-1].state, ended[-1].state)}; " if ended else ""
        return "requeued" if ended or queued.restarts else "waiting", before + why_it_waits(queued)
    if queued.state == "COMPLETING":
        return "ending", ""
    if queued.state != "RUNNING":
        return QUEUE_STATES.get(queued.state, "starting"), queued.state
    if not manifest or not _is_of_this_start(manifest, queued):
        return "starting", f"since {local_time(queued.begin, '%H:%M:%S')}"
    if (manifest.status != "running" or manifest.reason) and _silent_seconds(job) > LINGERS_S:
        done = _short(manifest.reason) or f"the run has {manifest.status}"
        return "lingering", f"{done}; its job is still RUNNING in Slurm, most likely without a process: --cancel it"
    if manifest.status != "running":
        return "ending", manifest.reason
    return ("preempted", "saves, and is queued again") if queued.preempted else ("running", "")


def _left_queue(
    manifest: RunManifest | None, job: SubmittedRun, starts: list[JobStart], array_is_known: bool
) -> tuple[str, str]:
    """Decide for a job that squeue does not list any more. array_is_known: the accounting has entries of its array."""
    last = starts[-1] if starts else None
    if manifest is not None and not _is_of_last_start(manifest, job, sum(bool(start.start) for start in starts) - 1):
        manifest = None
    if manifest and manifest.status == "completed":
        odd = f"though Slurm says {last.state}" if last and last.over and last.state != "COMPLETED" else ""
        return "complete", "; ".join(filter(None, (manifest.reason, odd)))
    reason = _own_reason(manifest)
    if manifest and manifest.status == "failed" and reason:  # before asking the accounting, which may lag behind
        return "failed", reason
    if last is None and array_is_known:  # Slurm forgets an element that was cancelled while it waited
        return "cancelled", "before it started"
    if last is None:
        return "unknown", f"Slurm knows no job {job.job_id} any more"
    if not last.over and _silent_seconds(job) < RUNAWAY_S:
        return "ending", "has left the queue; the accounting does not know its end yet"
    if not last.over:
        return "failed", "has left the queue; the accounting never heard of its end (sacctmgr show runawayjobs)"
    if last.state == "CANCELLED":
        waited = "while it waited to start again" if len(starts) > 1 else "before it started"
        return "cancelled", reason or ("" if last.seconds else waited)
    if reason:
        return "interrupted", reason
    words = ENDS.get(last.state) or last_words(log_texts(job))
    return "failed", "; ".join(filter(None, (words, full_disk(Path(job.folder)))))  # a log on a full disk says nothing


def _silent_seconds(job: SubmittedRun) -> float:
    """Return the seconds since the job's logs were last written to, or since it was submitted."""
    written = [path.stat().st_mtime for path in log_files(job) if path.exists()]
    return time.time() - max([job.submitted, *written])


def _is_of_last_start(manifest: RunManifest, job: SubmittedRun, restarts: int) -> bool:
    """Return True if the job's last start wrote run.json or, where the run went on without Slurm, a later start did.

    restarts: how often Slurm has restarted the job.
    """
    last = manifest.starts[-1] if manifest.starts else None
    if last is None:
        return False
    if last.job and last.job.name == job.job_id:
        return last.job.restart_count >= restarts
    return datetime.strptime(last.time, TIME).timestamp() > job.submitted


def _is_of_this_start(manifest: RunManifest, queued: Queued) -> bool:
    """Return True if the start that runs now has written its entry to run.json."""
    job = manifest.starts[-1].job if manifest.starts else None
    return job is not None and (job.name, job.restart_count) == (queued.job, queued.restarts)
