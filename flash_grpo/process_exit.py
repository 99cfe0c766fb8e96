"""How the process of one rank ends. Standard library only."""

import atexit
import os
import sys


def end_at_once(code: int) -> None:
    """Once Python has nothing left to do, this process ends with `code` and takes nothing down: the threads of a process
    group may abort there when they want the interpreter that is going, or, NCCL's, wait for ranks that are gone.

    What was said last holds.
    """
    atexit.register(_end, code)  # the last to be registered is the first to be called


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
