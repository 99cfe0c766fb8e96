"""Receive the bodies of requests in bounded memory, so that a stalled sender does not keep others waiting.

uvicorn has no time-out for reading, so `ImpatientProtocol` adds one to its h11 protocol. `Intake` counts the bytes that have
arrived, not those that are announced: a sender that announces much and sends little takes little of the memory. A stalled body
is dropped as soon as another body needs its memory. Bodies are anonymous mappings, which take memory only where they are
written and give it back when they are dropped; heap memory may do neither.
"""

import asyncio
import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message
from uvicorn.protocols.http.h11_impl import H11Protocol

PROGRESS = 2**16  # bytes: a sender has stalled if it sends fewer in STALLED_S, or in the patience of the protocol
STALLED_S = 1.0  # a body without progress for this long may be dropped for another


class NoRoom(Exception):
    """There is no memory for this body now."""


class Body:
    """One body, which arrives or has arrived. length: as announced. moved: when it last made progress, monotonic."""

    def __init__(self, length: int):
        self.length, self.received, self.moved = length, 0, time.monotonic()
        self.pages: mmap.mmap | None = mmap.mmap(-1, max(length, 1))

    def put(self, chunk: bytes) -> None:
        """Append what has arrived; NoRoom if the body was dropped meanwhile."""
        if self.pages is None:
            raise NoRoom
        end = self.received + len(chunk)
        self.pages[self.received : end] = chunk
        if end // PROGRESS > self.received // PROGRESS or end == self.length:
            self.moved = time.monotonic()
        self.received = end

    def drop(self) -> None:
        self.pages, self.received = None, 0

    @property
    def whole(self) -> memoryview:
        """Return the body, which must have arrived."""
        assert self.pages is not None
        return memoryview(self.pages)[: self.length]


class Intake:
    """All bodies that are held, in at most `max_bytes`."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._held: set[Body] = set()

    def has_room(self, length: int) -> bool:
        """Return True if `length` more bytes fit in; if they do not, first drop stalled bodies, the longest stalled first."""
        excess = sum(body.received for body in self._held) + length - self.max_bytes
        if excess <= 0:
            return True
        latest = time.monotonic() - STALLED_S
        stalled = [body for body in self._held if 0 < body.received < body.length and body.moved < latest]
        for body in sorted(stalled, key=lambda body: body.moved):
            if excess > 0:
                excess -= body.received
                body.drop()
        return excess <= 0

    @contextmanager
    def holding(self, length: int) -> Iterator[Body]:
        """Hold a body while the block runs."""
        try:
            body = Body(length)
        except OSError as error:  # the system grants no mapping of this size
            raise NoRoom from error
        self._held.add(body)
        try:
            yield body
        finally:
            self._held.discard(body)
            body.drop()

    async def read(self, body: Body, request: Request) -> None:
        """Read the request's body to its end. NoRoom if memory runs out, ClientDisconnect if the sender goes."""
        more = True
        while more:
            more = self._put(body, await request.receive())

    def _put(self, body: Body, message: Message) -> bool:
        """Append a piece of the body and return True if more comes.

        No variable keeps the piece in memory while the next one is awaited; one of `request.stream` would.
        """
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        if chunk and not self.has_room(len(chunk)):
            raise NoRoom
        body.put(chunk)
        return message.get("more_body", False)


class ImpatientProtocol(H11Protocol):
    """Close a connection that owes the rest of a request, header or body, if fewer than PROGRESS bytes come in `patience_s`.

    The time-out also applies while uvicorn discards the body of a request that was answered early.
    """

    def __init__(self, *args: Any, patience_s: float, **more: Any):
        super().__init__(*args, **more)
        self._patience_s, self._recent = patience_s, 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        before = self.conn.their_state
        super().data_received(data)
        self._recent += len(data)
        if self.conn.their_state is not before or self._recent >= PROGRESS:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop_waiting()
        self._recent = 0
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._patience_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
