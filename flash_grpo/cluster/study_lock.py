"""Let one process at a time submit to a study, from the check that its runs have no job to the record of their new jobs.

The lock is the kernel's (`flock`): it ends with its process, however that ends. On NFS it holds between nodes too.
"""

import fcntl
import json
import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import RESTORE, read_as, read_object, write_atomically
from flash_grpo.records.locking import locked

log = logging.getLogger(__name__)
LOCK, UNSENT = "lock", "unsent.json"
UNLOCKED = "nothing keeps two launchers from submitting the same runs"
PATIENCE_S = 60.0  # how long to wait for another process that submits, which takes seconds
FEW_S = 2.0  # the same, if that process waits for room in the queue; the jobs command may hold the lock for a moment


class LockedError(ValueError):
    """The reason, in one line, why nothing can be submitted: another process submits to the study, and which."""


class StudyLock:
    """Holds the study's lock from its creation to `close`. folder: the study's .submitit.

    patience: seconds to wait for another holder; 0 tries once; at most FEW_S are spent on a launcher whose runs wait for room
    in Slurm's queue. LockedError, which names the holder, if the lock stays taken.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE_S) -> None:
        self.folder, began = folder, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.file: IO[str] = open(folder / LOCK, "a+")  # noqa: SIM115 -- stays open while the lock is held
        while not locked(self.file, fcntl.flock, UNLOCKED):
            waits = (folder / UNSENT).exists()
            if time.monotonic() - began >= (min(patience, FEW_S) if waits else patience):
                self.file.close()
                raise LockedError(_held(folder, waits))
            time.sleep(0.2)
        self.file.truncate(0)
        self.file.write(json.dumps({"host": platform.node(), "pid": os.getpid(), "since": time.time()}) + "\n")
        self.file.flush()

    def note_unsent(self, runs: list[str]) -> None:
        """Write the names of the runs that this process has yet to submit, for the jobs command; none: forget them."""
        if runs:
            write_atomically(self.folder / UNSENT, json.dumps({"runs": runs}) + "\n")
        else:
            (self.folder / UNSENT).unlink(missing_ok=True)

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """The content of unsent.json."""

    runs: list[str]


def unsent(folder: Path) -> tuple[list[str], str]:
    """Return the runs that a launcher has yet to submit, and the launcher, '' if it has died. folder: the study's .submitit.

    A damaged note of them is named in a warning: it keeps nobody from seeing the other runs.
    """
    if not (folder / UNSENT).exists():
        return [], ""
    try:
        names = read_as(Unsent, folder / UNSENT, "delete it; its launcher submits all the same").runs
    except DamagedFileError as damaged:
        log.warning(str(damaged))
        return [], ""
    with suppress(LockedError, OSError):
        StudyLock(folder, patience=0).close()
        return names, ""
    return names, _holder(folder)[0]


def _held(folder: Path, waits: bool) -> str:
    holder, host = _holder(folder)
    what = "its launcher still has runs to submit, as room appears" if waits else "something is being submitted"
    return (
        f"{folder.parent}: {what}: {holder}. Wait for it, or end it there (kill); if {host} is down for good, "
        f"delete {folder / LOCK}"
    )


def _holder(folder: Path) -> tuple[str, str]:
    """Return who holds the lock, in words, and its host."""
    try:
        entry = read_object(folder / LOCK, RESTORE)
        since = datetime.fromtimestamp(entry["since"]).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {entry['pid']} on {entry['host']}, since {since}", entry["host"]
    except (DamagedFileError, KeyError, TypeError):  # the holder is just writing it
        return "another process", "its host"
