"""Score videos on reward servers. `python -m flash_grpo.serve` is such a server; the protocol is described there."""

import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult, ThreadPool

import httpx
import tenacity
import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import Scores
from flash_grpo.rewards.wire import TOKEN, packed_request

PATIENCE = tenacity.wait_exponential(multiplier=0.2, max=30.0) + tenacity.wait_random(0, 1)  # seconds between tries


class RemoteReward:
    """Score videos on reward servers; if a server does not answer, try the next, with growing pauses.

    `ask` returns at once: the servers score while the next rollouts are made.

    urls: of the servers. Requests go to them in turn, all servers at the same time; each rank begins with another server.
    batch: videos in one request (raw frames, 97 MB each at 480 x 832 x 81). timeout: seconds for one answer.
    give_up_after: seconds without an answer of any server after which scores raise RewardError.
    If a server requires a token, it is FLASH_GRPO_REWARD_TOKEN of the environment. Proxies are not used.
    """

    def __init__(self, *, urls: Sequence[str], batch: int = 4, timeout: float = 600.0, give_up_after: float = 1800.0):
        if not urls or batch < 1:
            raise ValueError(f"reward.urls={list(urls)}, batch={batch}: at least one server and one video are needed")
        for url in urls:
            _refuse_bad_address(url)
        self._urls, self._batch, self._give_up_after = [url.rstrip("/") for url in urls], batch, give_up_after
        token = os.environ.get(TOKEN)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=httpx.Timeout(timeout, connect=10.0), headers=headers, trust_env=False)
        self._turn = itertools.count(int(os.environ.get("RANK", 0)))
        self._lanes = [ThreadPool(1) for _ in self._urls]  # a server scores one request at a time; daemon threads

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        return self.ask(video_BFHWC, text).get()

    def ask(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> "AskedServers":
        """Send uint8 videos [B, F, H, W, 3] and their texts to the servers, and do not wait for the scores."""
        requests = []
        for rows in torch.arange(len(text)).split(self._batch):
            first, texts = next(self._turn) % len(self._urls), [text[row] for row in rows.tolist()]
            requests.append(self._lanes[first].apply_async(self._scored, (first, video_BFHWC[rows], texts)))
        return AskedServers(requests)

    def _scored(self, first: int, video_BFHWC: torch.Tensor, text: list[str]) -> dict:
        """Return the answer of the first server that has one. first: index of the server to try first."""
        request = _Request(itertools.cycle(self._urls[first:] + self._urls[:first]), time.monotonic())
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _Again)),
            wait=patience,
            stop=lambda _: time.monotonic() - request.heard > self._give_up_after,
            reraise=True,
        )
        try:
            answer = retrying(self._answer_of_next, request, packed_request(video_BFHWC, text))
        except (httpx.TransportError, _Again) as error:
            raise RewardError(
                f"reward server {' '.join(self._urls)}: no answer for {self._give_up_after:.0f} s ({type(error).__name__}: "
                f"{error}); start it again, then give the same command to continue the run"
            ) from error
        if len(answer["total"]) != len(text):
            raise RewardError(f"reward server: {len(answer['total'])} scores for {len(text)} videos")
        return answer

    def _answer_of_next(self, request: "_Request", body: bytes) -> dict:
        """Ask the next server. Raise _Again if the request should be tried again, RewardError if every server rejects it."""
        url = next(request.urls)
        answer = None
        if request.was_busy:  # look before sending the videos again
            answer = self._client.get(f"{url}/health")
        if answer is None or "Retry-After" not in answer.headers:
            answer = self._client.post(f"{url}/score", content=body)
        if "Retry-After" in answer.headers:
            request.heard, request.was_busy = time.monotonic(), True
            raise _Busy(f"{url} is busy")
        if answer.status_code >= 500:
            raise _Again(f"{answer.status_code} {answer.text[:200]}")
        if answer.status_code != 200:
            request.refused_by.add(url)
            if request.refused_by >= set(self._urls):
                raise RewardError(f"reward server {url}: {answer.status_code} {answer.text[:500]}")
            raise _Refused(f"{answer.status_code} {answer.text[:200]}")
        return _finite_or_nan(answer.json())


@dataclass
class _Request:
    """The state of one request between its tries.

    urls: of the servers to try, without end. heard: time.monotonic() of the last sign of a working server. was_busy: a
    server has answered that it is busy. refused_by: servers that rejected the request.
    """

    urls: Iterator[str]
    heard: float
    was_busy: bool = False
    refused_by: set[str] = field(default_factory=set)


class _Again(Exception):
    """Retry: the server is there but cannot answer now."""


class _Busy(_Again):
    """Retry: the server is busy with other requests (503 with Retry-After)."""


class _Refused(_Again):
    """Retry elsewhere: this server rejected the request; another may accept it."""


def patience(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next try: none after a rejection, about one at a busy server, else growing ones."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Refused):
        return 0.0
    return random.uniform(0.5, 1.5) if isinstance(error, _Busy) else PATIENCE(state)


@dataclass(frozen=True)
class AskedServers:
    """Scores on their way from the servers.

    requests: give the answers of the servers, in the order of the videos.
    """

    requests: list[AsyncResult]

    def ready(self) -> bool:
        """Return True if `get` would not wait: all have answered, or one has failed."""
        return bool(self._failed()) or all(request.ready() for request in self.requests)

    def _failed(self) -> list[AsyncResult]:
        return [request for request in self.requests if request.ready() and not request.successful()]

    def get(self) -> Scores:
        """Wait for the scores; raise RewardError if a request has failed for good."""
        for request in self._failed():  # fail now: the other requests may be retried for long
            request.get()
        answers = [request.get() for request in self.requests]
        names = answers[0]["parts"]
        return Scores(
            total_B=torch.cat([torch.tensor(answer["total"]) for answer in answers]),
            parts={name: torch.cat([torch.tensor(answer["parts"][name]) for answer in answers]) for name in names},
            device_seconds=sum(answer["device_seconds"] for answer in answers),
        )


def _refuse_bad_address(url: str) -> None:
    """Raise ValueError if the URL is not the address of a server."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"reward.urls: {url}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"reward.urls: {url}: expected an address like http://node7:8700")


def _finite_or_nan(answer: dict) -> dict:
    """Replace the server's nulls by NaN, which JSON lacks."""

    def numbers(values: list) -> list[float]:
        return [float("nan") if value is None else value for value in values]

    return {**answer, "total": numbers(answer["total"]), "parts": {k: numbers(v) for k, v in answer["parts"].items()}}
