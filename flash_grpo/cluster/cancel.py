"""Cancel runs of a study: all of their jobs that wait or run."""

from collections.abc import Iterable

from flash_grpo.cluster import slurm
from flash_grpo.cluster.run_state import ALIVE, RunState
from flash_grpo.records.submissions import SubmittedRun

CANCELLABLE = tuple(state for state in ALIVE if state != "ending")


class CancelError(RuntimeError):
    """The reason, in one line, why Slurm did not cancel jobs."""


def cancel(runs: list[RunState], chosen: list[RunState] | None, slurm_answers: bool) -> list[str]:
    """Cancel all live jobs of the chosen runs, or of all; return a line about each run. CancelError if Slurm refuses.

    slurm_answers: False if the states come from the runs' own files; then every run that may be alive is cancelled.
    """
    jobs = {run.run: [job.job_id for job in _cancellable(run, slurm_answers)] for run in runs}
    if chosen is None:
        chosen = [run for run in runs if jobs[run.run]]
    if cancelled := [job for run in chosen for job in jobs[run.run]]:
        _scancel(cancelled)
    lines = [_cancelled(run, jobs[run.run], slurm_answers) for run in chosen if jobs[run.run]]
    lines += [f"left {run.run} alone: it is {run.state}" for run in chosen if not jobs[run.run]]
    return [*lines, *_left(runs)] or ["nothing waits or runs"]


def _cancellable(run: RunState, slurm_answers: bool) -> tuple[SubmittedRun, ...]:
    if not slurm_answers:
        return run.jobs[-1:] if run.state != "complete" else ()
    return run.live if run.state in CANCELLABLE or len(run.live) > 1 else ()


def _scancel(jobs: Iterable[str]) -> None:
    try:
        slurm.output_of("scancel", "--", *jobs)  # jobs.jsonl may hold options
    except slurm.NoSlurmError as error:
        raise CancelError(str(error)) from error


def _cancelled(run: RunState, job_ids: list[str], slurm_answers: bool) -> str:
    was = f", which was {run.state}" if slurm_answers else ""
    ends = {"running": ": it saves and ends", "starting": ": it ends before it does anything new"}
    return f"cancelled {run.run} (job{'s' * (len(job_ids) > 1)} {', '.join(job_ids)}){was}{ends.get(run.state, '')}"


def _left(runs: list[RunState]) -> list[str]:
    """Say which runs a launcher is still going to submit, and how to keep it from that."""
    unsent = [run for run in runs if run.state == "waiting" and not run.live]
    if not unsent:
        return []
    return [f"left {len(unsent)} runs alone that are not submitted yet: they wait {unsent[0].why}; end it first (kill)"]
