"""Decide how long a request waits for reward servers, and say on the console who is waited for."""

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

    urls: of the servers to try, without end. text: of the B videos. begun: time.monotonic() of its first try. heard: of the
    last sign of a working server. was_busy: a server has answered that it is busy. refused_by: servers that rejected it.
    """

    urls: Iterator[str]
    text: tuple[str, ...]
    begun: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    was_busy: bool = False
    refused_by: set[str] = field(default_factory=set)


@dataclass
class Waiting:
    """The bounds of waiting of all requests of a client.

    give_up_after: seconds without an answer of any server. max_wait: seconds of one request in all. servers: for messages.
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
        """Return when the request gives up, monotonic, and the setting that says so."""
        silent = request.heard + self.give_up_after, f"reward.give_up_after={self.give_up_after:g}"
        return min(silent, (request.begun + self.max_wait, f"reward.max_wait={self.max_wait:g}"))

    def is_over(self, request: Request) -> bool:
        return time.monotonic() > self.bound(request)[0]

    def say(self, request: Request, error: BaseException, pause: float) -> None:
        """Say who is waited for, and until when, if it was not said lately and the wait is long with the coming pause."""
        now = time.monotonic()
        with self._lock:
            if now + pause - request.begun < SAID_AFTER_S or now < self._next_line:
                return
            self._next_line = now + SAID_AGAIN_S
        until, setting = self.bound(request)
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + until - now))
        log.warning("waiting for reward server %s until %s (%s): %s", self.servers, clock, setting, reason(error))

    def say_once(self, url: str, why: str) -> None:
        """Say, the first time, that a server rejects requests or answers wrongly, so that others must do its work."""
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
