"""Read the ids of a Slurm job from SLURM_* variables. Standard library only."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The Slurm job that a process belongs to, and the rank of the process in the job.

    job_id: Slurm's number of the job; one element of an array has the same number as the whole array.
    array_id, task_id: the array's number and the element's number in it; None for a job that is not part of an array.
    restart_count: how often Slurm has restarted the job, 0 at its first start. A requeued job keeps its id.
    rank: number of this task in the job, over all nodes.
    launch_address: IP address of the node where srun runs; None where srun did not start this process.
    has_gpus: True if Slurm allocated GPUs on this node.
    """

    job_id: str
    array_id: str | None = None
    task_id: str | None = None
    restart_count: int = 0
    rank: int = 0
    launch_address: str | None = None
    has_gpus: bool = False

    @classmethod
    def here(cls) -> "SlurmJob | None":
        """Return the job of this process, or None outside Slurm."""
        return cls.of(os.environ)

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> "SlurmJob | None":
        """Read a job from SLURM_* variables; None if they do not name one."""
        if "SLURM_JOB_ID" not in variables:
            return None
        return cls(
            job_id=variables["SLURM_JOB_ID"],
            array_id=variables.get("SLURM_ARRAY_JOB_ID"),
            task_id=variables.get("SLURM_ARRAY_TASK_ID"),
            restart_count=int(variables.get("SLURM_RESTART_COUNT", 0)),
            rank=int(variables.get("SLURM_PROCID", 0)),
            launch_address=variables.get("SLURM_LAUNCH_NODE_IPADDR"),
            has_gpus="SLURM_GPUS_ON_NODE" in variables,
        )

    @property
    def name(self) -> str:
        """Return the name that squeue, sacct and jobs.jsonl use: '12_3' for element 3 of array 12, else the job id.

        An element must be addressed by this name: its job id may be the array's, which stands for all elements.
        """
        return f"{self.array_id}_{self.task_id}" if self.array_id else self.job_id

    @property
    def variables(self) -> dict[str, str]:
        """Return the SLURM_* variables that identify this start of the job, as run.json stores them."""
        ids = {
            "SLURM_JOB_ID": self.job_id,
            "SLURM_ARRAY_JOB_ID": self.array_id,
            "SLURM_ARRAY_TASK_ID": self.task_id,
            "SLURM_RESTART_COUNT": str(self.restart_count) if self.restart_count else None,
        }
        return {name: value for name, value in ids.items() if value is not None}
