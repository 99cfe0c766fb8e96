"""Define what `run.json` says of what Slurm charges for a run. Standard library only."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class BilledStart:
    """One start of a Slurm job, as Slurm charges it.

    job: Slurm's name of the job. state: Slurm's word for how the start ended. start: when it began, UTC.
    seconds: elapsed wall seconds. devices: GPUs allocated; without GPUs the number of ranks.
    """

    job: str
    state: str
    start: str
    seconds: int
    devices: int


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What Slurm charges for a run, over all its jobs and all their starts, requeued, failed and cancelled ones too.

    starts: oldest first. device_seconds: sum over starts of seconds x devices.
    useful_device_seconds: cost.device_seconds + evaluation_seconds - cost.server_seconds of the last record. Capped at
      device_seconds, since part of the run may have been done outside Slurm, and several CPU threads can use more CPU
      seconds than the wall seconds that Slurm counts.
    lost_device_seconds: the difference: starting up, saving, waiting, and work done twice; on a CPU also the time in which
      the process had no core.
    """

    starts: list[BilledStart] = field(default_factory=list)
    device_seconds: float = 0
    useful_device_seconds: float = 0
    lost_device_seconds: float = 0
