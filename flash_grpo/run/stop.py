"""Receive requests to stop a run: Ctrl-C, SIGTERM, and under Slurm USR2."""

import logging
import signal
from typing import Any

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The run was asked to stop and has been saved; the same command continues it."""


class StopRequest:
    """A request to stop the run, by Ctrl-C, SIGTERM or USR2. A second Ctrl-C raises KeyboardInterrupt at once.

    Under Slurm, SIGTERM and USR2 are blocked before Python starts (see `slurm/`) and stay pending until this object looks
    for them. So no signal is lost during start-up or in C code, and none kills a process that the run has started.
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
        log.warning("%s: the run saves and ends at its next denoising step or micro-batch", signal.Signals(number).name)
