"""Take a lock on a file, if nobody else has it. Standard library only."""

import fcntl
import logging
from collections.abc import Callable
from typing import IO

log = logging.getLogger(__name__)


def locked(file: IO[str], lock: Callable[[IO[str], int], None], unlocked: str) -> bool:
    """Take the lock without waiting, and return True; False if another process has it.

    lock: `fcntl.lockf` or `fcntl.flock`. On a file system without locks this warns of what may happen now, `unlocked`, and
    returns True.
    """
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning("%s: %s; %s", file.name, error.strerror, unlocked)
    return True
