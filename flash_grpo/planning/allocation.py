"""Tell what one run gets: nodes, ranks, devices, time, from the launcher's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flash_grpo.planning.devices import Device


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What one run has while it runs. A rank has one device: a GPU, or on a CPU its process.

    why: how the device was chosen. host_gigabytes: memory of each node that is asked for; None for all of it. minutes: of one
    start; None for no limit. grace_seconds: how long before the limit a run is asked to save; None where nothing says so.
    at_once: runs at the same time; None for as many as there is room for.
    """

    device: Device
    why: str
    nodes: int = 1
    ranks_per_node: int = 1
    host_gigabytes: float | None = None
    minutes: float | None = None
    grace_seconds: float | None = None
    at_once: int | None = None

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def billed(self) -> str:
        """Return the unit of what is charged."""
        return "CPU" if self.device.is_cpu else "GPU"


def allocation(launcher: Mapping[str, Any] | None, device: Device, why: str) -> Allocation:
    """Return what a launcher gives to one run. launcher: None of a single run on this machine."""
    settings = launcher or {}
    on_slurm = "signal_delay_s" in settings
    return Allocation(
        device=device,
        why=why,
        nodes=settings.get("nodes") or 1,
        ranks_per_node=settings.get("tasks_per_node") or 1,
        host_gigabytes=settings.get("mem_gb") or None,
        minutes=settings["timeout_min"] if on_slurm else None,
        grace_seconds=settings["signal_delay_s"] if on_slurm else None,
        at_once=settings.get("array_parallelism") if on_slurm else settings.get("max_parallel"),
    )
