"""Decide how a job ended that has left the queue while Slurm's accounting does not answer: a site has none, or it is down.

The run's own files decide, with what Slurm's controller remembers of the job for some minutes (MinJobAge).
"""

from flash_grpo.cluster.last_words import last_words
from flash_grpo.cluster.logs import log_texts
from flash_grpo.cluster.reasons import ENDS
from flash_grpo.cluster.slurm import Queued
from flash_grpo.records.submissions import SubmittedRun


def state_of(status: str, reason: str, job: SubmittedRun, left: Queued | None) -> tuple[str, str]:
    """Return the state of a run whose job has left the queue, and why.

    status, reason: from run.json, '' if the job's last start has not written it. left: the job as the controller
    remembers it, None if it has forgotten it.
    """
    if status == "completed":
        odd = f"though Slurm says {left.state}" if left and left.state != "COMPLETED" else ""
        return "complete", "; ".join(filter(None, (reason, odd)))
    if status == "failed" and reason:
        return "failed", reason
    if left and left.state == "CANCELLED":
        return "cancelled", reason or ("before it started" if left.begin == left.end and not left.restarts else "")
    if reason:
        return "interrupted", reason
    texts = log_texts(job)
    if left is None and not texts:
        return "unknown", f"Slurm has forgotten job {job.job_id}, and it wrote nothing"
    return "failed", (ENDS.get(left.state) if left else "") or last_words(texts)
