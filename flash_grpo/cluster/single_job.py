"""Run one function on the ranks of one short job, of the shape that a launcher's settings describe, and wait for it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flash_grpo.cluster import slurm
from flash_grpo.cluster.launch import python_on, sbatch_parameters
from flash_grpo.cluster.limits import refuse_too_long_a_run, site_limits
from flash_grpo.cluster.node import export_ranks
from flash_grpo.cluster.refusal import refuse
from flash_grpo.cluster.site import refuse_what_cannot_run
from flash_grpo.cluster.snapshot import snapshot
from flash_grpo.cluster.submission import JobRequest, RefusedError, sbatch, write_point
from flash_grpo.process_exit import end_at_once

LOOK_S = 1.0  # seconds between two looks at the job
SETTLE_S = 3.0  # seconds in which a file of a job that has ended comes to be seen here
OF_THE_LAUNCHER = ("_target_", "detach", "rehearse", "files")  # settings of `SlurmResumableConf` that describe no job


class NoResultError(RuntimeError):
    """Why a job ended without a result of any rank, in one line."""


@dataclass(frozen=True, kw_only=True)
class SingleJob:
    """A job that was submitted. job: submitit's. ranks: how many tasks it has."""

    job: Any
    ranks: int

    @property
    def log_file(self) -> Path:
        """Return the log of rank 0."""
        return Path(self.job.task(0).paths.stdout)

    def results(self) -> list[Any]:
        """Wait, and return what the function returned on each rank that came to its end. NoResultError if none did.

        An exception, as Ctrl-C raises, cancels the job.
        """
        try:
            while not self._over():
                time.sleep(LOOK_S)
        except BaseException:
            self.job.cancel()
            raise
        import submitit

        done, who = self._done(), f"job {self.job.job_id}"
        if not done:
            raise NoResultError(f"{who} ended as {self.job.state} without a result; its log is {self.log_file}")
        try:
            return [self.job.task(rank).result() for rank in done]
        except submitit.core.utils.FailedJobError as error:
            raise NoResultError(f"{who}: {str(error).strip().splitlines()[-1]}; its log is {self.log_file}") from error

    def _done(self) -> list[int]:
        """Return the ranks that have written their result."""
        return [rank for rank in range(self.ranks) if self.job.task(rank).paths.result_pickle.exists()]

    def _over(self) -> bool:
        """Return True once all ranks have a result, or the queue no longer has the job; the accounting is not needed."""
        if len(self._done()) == self.ranks:
            return True
        try:
            if slurm.output_of("squeue", "-h", "-j", self.job.job_id, "-o", "%i").strip():
                return False
        except slurm.NoSlurmError as error:
            if "Invalid job id" not in str(error):  # the controller does not answer now
                return False
        time.sleep(SETTLE_S)
        return True


def submitted(
    settings: Mapping[str, Any], minutes: int, folder: Path, function: Callable[..., Any], *arguments: Any
) -> SingleJob:
    """Submit `function(*arguments)` to all ranks of a run's shape. What cannot run is refused in one line, exit code 2.

    settings: of the launcher. minutes: the time limit, if the shape's is not shorter. folder: for the job's files.
    """
    kept = {key: value for key, value in settings.items() if key not in OF_THE_LAUNCHER}
    params = {**kept, "timeout_min": min(minutes, kept["timeout_min"]), "signal_delay_s": 0, "name": "preflight"}
    refuse_what_cannot_run(params)
    try:
        refuse_too_long_a_run(site_limits(params), params["timeout_min"])
        job = _sent(params, folder, function, arguments)
    except (slurm.NoSlurmError, RefusedError) as error:
        refuse(str(error))
    return SingleJob(job=job, ranks=params["nodes"] * params["tasks_per_node"])


def _sent(params: dict[str, Any], folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    parameters = sbatch_parameters(params)
    parameters["slurm_additional_parameters"] = {
        key: value for key, value in parameters["slurm_additional_parameters"].items() if key != "requeue"
    }
    request = JobRequest(
        folder=str((folder / "%j").absolute()), python=python_on(snapshot(folder / "code")), parameters=parameters
    )
    (job,) = sbatch(request, [str(write_point(folder, "preflight", in_rank, function, *arguments))])
    return job


def in_rank(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function as one of a job's ranks. It returns a dictionary; one with `failed` ends the other ranks too."""
    export_ranks()
    end_at_once(1)
    found = function(*arguments)
    end_at_once(1 if "failed" in found else 0)
    return found
