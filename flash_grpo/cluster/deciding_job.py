"""Choose the job that decides the state of a run that has several."""

from flash_grpo.cluster.slurm import Answer, seconds_since_1970
from flash_grpo.records.schema import RunManifest
from flash_grpo.records.submissions import SubmittedRun


def deciding_job(manifest: RunManifest | None, jobs: list[SubmittedRun], answer: Answer | None) -> SubmittedRun | None:
    """Return the job that decides a run's state: the one that runs, else the one that ended last or was submitted last.

    A run has several jobs at once if one of them was submitted behind the launcher's back: the second waits for the first.
    jobs: the run's live ones if there are any, else all; oldest first.
    """
    if not jobs or answer is None:
        return jobs[-1] if jobs else None
    writer = manifest.starts[-1].job if manifest and manifest.starts else None

    def weight(job: SubmittedRun) -> tuple[bool, bool, float]:
        runs = (queued := answer.queued.get(job.job_id)) is not None and queued.state != "PENDING"
        ended = [
            seconds_since_1970(start.start) + start.seconds
            for start in answer.starts.get(job.job_id, [])
            if start.start
        ]
        return runs and writer is not None and writer.name == job.job_id, runs, max([job.submitted, *ended])

    return max(reversed(jobs), key=weight)
