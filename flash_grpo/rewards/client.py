"""Score videos on reward servers. `python -m flash_grpo.serve` is such a server; the protocol is described there."""

import itertools
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any

import httpx
import tenacity
import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.scoring import Kind, checked_scores, joined_scores
from flash_grpo.algorithm.types import Scores
from flash_grpo.rewards.waiting import Again, Busy, Refused, Request, Waiting, patience, reason
from flash_grpo.rewards.wire import packed_request, token_of_environment, unpacked_scores

log = logging.getLogger(__name__)
MAX_ANSWER, ANSWER_S = 2**24, 60.0  # bytes of an answer, and seconds from its first to its last
LOOK_S = 5.0  # for a first look at a server


class RemoteReward:
    """Score videos on reward servers; if a server does not answer, or answers wrongly, try the next, with growing pauses.

    `ask` returns at once: the servers score while the next rollouts are made.

    urls: of the servers. Requests go to them in turn, and all servers work at the same time; each rank begins with another
    server. All must serve the same reward: ValueError if two servers that answer now do not. Later a score of another kind than
    the first is taken for a wrong answer.
    batch: videos in one request (raw frames, 97 MB each at 480 x 832 x 81). timeout: seconds for one answer.
    give_up_after: seconds without an answer of any server after which a request fails with RewardError. max_wait: seconds
    after which it fails even if the servers are only busy.
    If a server requires a token, it is FLASH_GRPO_REWARD_TOKEN of the environment. Proxies are not used.
    """

    def __init__(
        self,
        *,
        urls: Sequence[str],
        batch: int = 4,
        timeout: float = 600.0,
        give_up_after: float = 1800.0,
        max_wait: float = 7200.0,
    ):
        ranges.some_of("reward.urls", urls)
        ranges.whole("reward.batch", batch)
        ranges.number("reward.timeout", timeout, above=0)
        for url in urls:
            _refuse_bad_address(url)
        self._urls, self._batch = [url.rstrip("/") for url in urls], batch
        self._waiting = Waiting(give_up_after, max_wait, " ".join(self._urls))
        token = token_of_environment()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=httpx.Timeout(timeout, connect=10.0), headers=headers, trust_env=False)
        self._turn = itertools.count(int(os.environ.get("RANK", 0)))
        self._lanes = [ThreadPool(1) for _ in self._urls]  # a server scores one request at a time; daemon threads
        self._kinds: dict[str, Kind] = {}  # "first": of the first answer
        self._look()

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        return self.ask(video_BFHWC, text).get()

    def ask(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> "AskedServers":
        """Send uint8 videos [B, F, H, W, 3] and their texts to the servers, and do not wait for the scores."""
        requests = []
        for rows in torch.arange(len(text)).split(self._batch):
            first, texts = next(self._turn) % len(self._urls), tuple(text[row] for row in rows.tolist())
            requests.append(self._lanes[first].apply_async(self._scored, (first, video_BFHWC[rows], texts)))
        return AskedServers(requests)

    def _look(self) -> None:
        """Log a warning if no server answers yet; ValueError if the servers that answer serve different rewards."""
        found = [
            lane.apply_async(_health, (self._client, url)) for lane, url in zip(self._lanes, self._urls, strict=True)
        ]
        answers = dict(zip(self._urls, [answer.get() for answer in found], strict=True))
        served = {url: Kind((), answer) for url, answer in answers.items() if isinstance(answer, tuple) and answer}
        for url, kind in served.items():
            first = next(iter(served))
            if refusal := served[first].refusal(kind):
                raise ValueError(f"reward.urls: {url} is not the same as {first}: {refusal}")
        silent = [f"{url} {reason(answer)}" for url, answer in answers.items() if isinstance(answer, Exception)]
        if len(silent) == len(self._urls):
            log.warning(
                "no reward server answers yet (%s): start one with python -m flash_grpo.serve reward=NAME; the run waits for "
                "it for %g s from its first videos on (reward.give_up_after)",
                "; ".join(silent),
                self._waiting.give_up_after,
            )

    def _scored(self, first: int, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        """Return the scores of the first server that answers. first: index of the server to try first."""
        request = Request(itertools.cycle(self._urls[first:] + self._urls[:first]), text)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, Again)),
            wait=patience,
            stop=lambda _: self._waiting.is_over(request),
            before_sleep=lambda state: self._waiting.say(request, state.outcome.exception(), state.upcoming_sleep),
            reraise=True,
        )
        try:
            return retrying(self._scores_of_next, request, packed_request(video_BFHWC, list(text)))
        except (httpx.TransportError, Again) as error:
            raise RewardError(self._waiting.refusal(request, error)) from error

    def _scores_of_next(self, request: Request, body: bytes) -> Scores:
        """Ask the next server. Raise Again if the request should be tried again, RewardError if every server rejects it."""
        url = next(request.urls)
        answer, said = None, b""
        if request.was_busy:  # look before sending the videos again
            answer, said = _answer(self._client, "GET", f"{url}/health")
        if answer is None or "Retry-After" not in answer.headers:
            answer, said = _answer(self._client, "POST", f"{url}/score", content=body)
        if "Retry-After" in answer.headers:
            request.heard, request.was_busy = time.monotonic(), True
            raise Busy(f"{url} is busy")
        if answer.status_code >= 500:
            raise Again(f"{url}: {answer.status_code} {_shown(said)}")
        if answer.status_code != 200:
            raise self._refused(request, url, f"{answer.status_code} {_shown(said)}")
        try:
            return self._accepted(said, request.text)
        except (ValueError, RewardError) as error:
            raise self._refused(request, url, f"wrong answer: {error}") from error

    def _accepted(self, said: bytes, text: tuple[str, ...]) -> Scores:
        """Return the scores in an answer; ValueError or RewardError if it holds no scores, or scores of another kind."""
        scores = checked_scores(unpacked_scores(said), text, "its answer")
        if refusal := self._kinds.setdefault("first", Kind.of(scores)).refusal(Kind.of(scores)):
            raise RewardError(refusal)
        return scores

    def _refused(self, request: Request, url: str, why: str) -> Exception:
        """Note that this server rejected the request; return RewardError if all have, else Refused."""
        request.refused_by.add(url)
        if request.refused_by >= set(self._urls):
            return RewardError(f"reward server {url}: {why}")
        self._waiting.say_once(url, why)
        return Refused(f"{url}: {why}")


@dataclass(frozen=True)
class AskedServers:
    """Scores on their way from the servers.

    requests: give the scores of the servers, in the order of the videos.
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
        return joined_scores([request.get() for request in self.requests])


def _health(client: httpx.Client, url: str) -> "tuple[str, ...] | Exception":
    """Return what the server says of the reward that it serves, () if it says nothing; the error if it does not answer."""
    try:
        said = _answer(client, "GET", f"{url}/health", timeout=LOOK_S)[1]
    except (httpx.TransportError, Again) as error:
        return error
    try:
        return tuple(str(item) for item in json.loads(said)["served"])
    except (ValueError, KeyError, TypeError, RecursionError):  # a server of another make
        return ()


def _answer(client: httpx.Client, method: str, url: str, **more: Any) -> tuple[httpx.Response, bytes]:
    """Return a server's answer and its body; Again if it is longer than any score's, or never ends."""
    said, until = bytearray(), None
    with client.stream(method, url, **more) as answer:
        for chunk in answer.iter_raw():
            said += chunk
            until = until or time.monotonic() + ANSWER_S
            if len(said) > MAX_ANSWER or time.monotonic() > until:
                raise Again(f"{url}: an answer of more than {MAX_ANSWER} bytes or {ANSWER_S:.0f} s")
    return answer, bytes(said)


def _refuse_bad_address(url: str) -> None:
    """Raise ValueError if the URL is not the address of a server."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"reward.urls: {url}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"reward.urls: {url}: expected an address like http://node7:8700")


def _shown(said: bytes) -> str:
    """Return the beginning of what a server said, in one line."""
    return " ".join(said.decode(errors="replace").split())[:500]
