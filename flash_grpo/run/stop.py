"""Hear that a run is asked to stop."""

import logging
import signal
from typing import Any

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Asked to stop; the run was saved and the same command continues it."""


class StopRequest:
    """Ctrl-C or SIGTERM asks for a stop after the micro-batch under way; a second Ctrl-C does not wait for it.

    Under Slurm SIGTERM and USR2 are blocked before Python starts (see `slurm/`): they stay pending until looked for here,
    so that none is lost in start-up or in C code, and no process that the run started dies of them.
    """

    def __init__(self) -> None:
        self._noted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        return self._noted or bool(signal.sigpending() & {signal.SIGTERM, signal.SIGUSR2})

    def _note(self, number: int, frame: Any) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = True
        log.warning("%s: saving after this micro-batch", signal.Signals(number).name)
