"""End the process of one rank without library teardown. Standard library only."""

import atexit
import os
import sys
from contextlib import suppress


def end_at_once(code: int) -> None:
    """At interpreter exit, leave with `os._exit(code)` and skip library teardown. If called several times, the last wins.

    Gloo's threads can abort when the interpreter vanishes under them, and NCCL's can wait for ever for ranks that have
    already exited.
    """
    atexit.register(_end, code)  # atexit calls the last registered function first


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a log on a full disk does not change how the run has ended
            stream.flush()
    os._exit(code)
