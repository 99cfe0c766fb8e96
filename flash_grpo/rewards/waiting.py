"""Decide how long a request waits for reward servers, and log which servers it waits for."""

import logging
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import tenacity

from flash_grpo.algorithm import ranges

log = logging.getLogger(__name__)
PATIENCE = tenacity.wait_exponential(multiplier=0.2, max=30.0) + tenacity.wait_random(0, 1)  # seconds between tries
SAID_AFTER_S, SAID_AGAIN_S = 3.0, 600.0


class Again(Exception):
    """Retry: the server is there but cannot answer now."""


class Busy(Again):
    """Retry: the server is busy with other requests (503 with Retry-After)."""


class Refused(Again):
    """Retry elsewhere: this server rejected the request or gave a wrong answer; another may do better."""


@dataclass
class Request:
    """The state of one request between its tries.

    urls: the servers to try, in turn and without end. text: of the B videos. begun: time.monotonic() of the first try.
    heard: time.monotonic() of the last sign of a working server. was_busy: True once a server has answered that it is busy.
    refused_by: the servers that rejected the request.
    """

    urls: Iterator[str]
    text: tuple[str, ...]
    begun: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    was_busy: bool = False
    refused_by: set[str] = field(default_factory=set)


@dataclass
class Waiting:
    """How long each request of a client waits.

    give_up_after: seconds without an answer of any server. max_wait: seconds of one request, all its tries together.
    servers: their addresses, for messages.
    """

    give_up_after: float
    max_wait: float
    servers: str

    def __post_init__(self) -> None:
        ranges.number("reward.give_up_after", self.give_up_after, at_least=0)
        ranges.number("reward.max_wait", self.max_wait, above=0)
        self._lock, self._next_line = threading.Lock(), 0.0
        self._said: set[str] = set()

    def bound(self, request: Request) -> tuple[float, str]:
        """Return the time.monotonic() at which the request gives up, and the setting that decides it, as KEY=VALUE."""
        silent = request.heard + self.give_up_after, f"reward.give_up_after={self.give_up_after:g}"
        return min(silent, (request.begun + self.max_wait, f"reward.max_wait={self.max_wait:g}"))

    def is_over(self, request: Request) -> bool:
        return time.monotonic() > self.bound(request)[0]

    def say(self, request: Request, error: BaseException, pause: float) -> None:
        """Log which servers the request waits for, and until when.

        Log nothing within SAID_AGAIN_S of the last such line, or if the wait, the coming pause included, is below SAID_AFTER_S.
        """
        now = time.monotonic()
        with self._lock:
            if now + pause - request.begun < SAID_AFTER_S or now < self._next_line:
                return
            self._next_line = now + SAID_AGAIN_S
        until, setting = self.bound(request)
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + until - now))
        log.warning("waiting for reward server %s until %s (%s): %s", self.servers, clock, setting, reason(error))

    def say_once(self, url: str, why: str) -> None:
        """Log, once for each server, that it rejects requests or answers wrongly; other servers then do its work."""
        with self._lock:
            is_new = url not in self._said
            self._said.add(url)
        if is_new:
            log.warning("reward server %s: %s; the next one is asked", url, why)

    def refusal(self, request: Request, error: BaseException) -> str:
        """Return, in one line, why the request is given up."""
        setting = self.bound(request)[1]
        silent = "give_up_after" in setting
        waited = f"no answer for {self.give_up_after:.0f} s" if silent else f"not scored within {self.max_wait:.0f} s"
        way_out = "start it again, then" if silent else f"start more servers or raise {setting.partition('=')[0]}, then"
        return f"reward server {self.servers}: {waited} ({reason(error)}); {way_out} give the same command to continue the run"


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def patience(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next try: none after a rejection, about one at a busy server, else growing ones."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Refused):
        return 0.0
    return random.uniform(0.5, 1.5) if isinstance(error, Busy) else PATIENCE(state)
