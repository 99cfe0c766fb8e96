"""Hold a run's folder for one group of processes: make it, lock it, and leave it as it was found."""

import fcntl
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from flash_grpo.records.files import MANIFEST
from flash_grpo.records.full_disk import naming_full_disk
from flash_grpo.records.locking import locked
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run.starts import last_start
from flash_grpo.training.pace import Leave
from flash_grpo.training.ranks import Ranks

LOCK, LOCK_PATIENCE_S = ".lock", 600
UNLOCKED = "nothing keeps a second process from writing this run"


class HeldFolder:
    """A run's folder, made if it is missing, and locked by rank 0 until `lock` is closed. Errors as in `lock`."""

    def __init__(self, path: Path, ranks: Ranks):
        self.path, self.ranks = path, ranks
        self._new = not (path / MANIFEST).exists()
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        with naming_full_disk(path):
            path.mkdir(parents=True, exist_ok=True)
            self.lock = lock(path) if ranks.is_main else None

    def leave_as_found(self) -> None:
        """Remove the folders that this start has created, if the run did not exist before."""
        if self.ranks.is_main and self._new:
            (self.path / LOCK).unlink()
            with suppress(OSError):
                for folder in self._made:
                    folder.rmdir()


def lock(directory: Path) -> TextIO:
    """Lock the directory while the returned file is open, so that no second process overwrites this one's checkpoints.

    Under Slurm, wait up to LOCK_PATIENCE_S for an earlier start of the same job: it may still be ending, or be alive on a
    node that lost its connection. ValueError if the lock stays taken; Leave if this process is asked to stop meanwhile.
    """
    file = open(directory / LOCK, "w")  # noqa: SIM115 -- stays open until the run ends
    until = time.monotonic() + (LOCK_PATIENCE_S if SlurmJob.here() else 0)
    while not locked(file, fcntl.lockf, UNLOCKED):
        if time.monotonic() >= until:
            holder = last_start(directory)
            raise ValueError(f"{directory}: another process is at work on this run{holder}; wait for it, or stop it")
        if signal.sigpending() & {signal.SIGTERM, signal.SIGUSR2}:
            raise Leave
        time.sleep(1)
    return file
