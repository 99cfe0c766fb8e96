"""`python -m flash_grpo.serve reward=hpsv3 server.port=8700`: serve a reward from its own process and environment.

POST /score takes safetensors (`video` uint8 [B, F, H, W, 3], `text` the UTF-8 bytes of a JSON list) and answers with JSON
(`total`, `parts`, `device_seconds`, `served`), or with 503 and Retry-After while it has no room. GET /health tells what is
served, with Retry-After while the server is full. One process scores on one device: for several devices start several
processes, with CUDA_VISIBLE_DEVICES, on different ports. A token, FLASH_GRPO_REWARD_TOKEN in the environment of both sides, is
required unless the server listens on loopback only.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import uvicorn
from omegaconf import DictConfig, OmegaConf
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flash_grpo import cli
from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.protocols import Reward
from flash_grpo.algorithm.scoring import CheckedReward
from flash_grpo.records.identity import SERVERS
from flash_grpo.rewards.intake import ImpatientProtocol, Intake, NoRoom
from flash_grpo.rewards.wire import TOKEN, packed_scores, token_of_environment, unpacked_request
from flash_grpo.run import manifest

log = logging.getLogger(__name__)
COME_AGAIN = {"Retry-After": "1"}
AT_MOST = 4  # whole requests held at once, including the one being scored: others would wait longer than clients do


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes in.

    max_megabytes: of one request's body. buffered_megabytes: of all bodies together, whole or arriving. read_seconds: in
    which 64 kB of a request must come, or its end.
    """

    max_megabytes: float
    buffered_megabytes: float
    read_seconds: float

    def __post_init__(self) -> None:
        ranges.number("server.max_megabytes", self.max_megabytes, above=0)
        ranges.number("server.buffered_megabytes", self.buffered_megabytes, at_least=self.max_megabytes)
        ranges.number("server.read_seconds", self.read_seconds, above=0)

    @property
    def max_bytes(self) -> int:
        return int(self.max_megabytes * 2**20)


def application(
    reward: Reward, name: str, token: str | None, limits: Limits, device: str = "cpu", served: Sequence[str] = ()
) -> Starlette:
    """Make the web application that serves `reward`.

    name, device: shown by /health. token: what callers must send; None accepts everybody. served: what the reward is, see
    `Scores.source`; part of each answer.
    """
    server = _Server(CheckedReward(reward), token, limits, served)

    async def health(request: Request) -> Response:
        state = {"reward": name, "device": device, "busy": server.scoring.locked(), "served": list(served)}
        return JSONResponse(state, headers=COME_AGAIN if server.is_full else None)

    return Starlette(routes=[Route("/score", server.score, methods=["POST"]), Route("/health", health)])


def listener(app: Starlette, limits: Limits, **settings) -> uvicorn.Config:
    """Return uvicorn's configuration for serving `app`: it closes connections that stall. settings: host, port, …"""
    protocol = partial(ImpatientProtocol, patience_s=limits.read_seconds)  # idle connections are closed by it too
    fixed = {"ws": "none", "lifespan": "off", "timeout_keep_alive": 3600}
    return uvicorn.Config(app, http=protocol, **fixed, **settings)  # type: ignore[arg-type]


class _Server:
    """Scores requests one at a time and holds at most AT_MOST whole ones. For the arguments see `application`."""

    def __init__(self, reward: CheckedReward, token: str | None, limits: Limits, served: Sequence[str]):
        self.reward, self.token, self.limits, self.served = reward, token, limits, served
        self.intake = Intake(int(limits.buffered_megabytes * 2**20))
        self.scoring, self.held = asyncio.Lock(), 0

    @property
    def is_full(self) -> bool:
        return self.held >= AT_MOST

    async def score(self, request: Request) -> Response:
        """Answer a request. One that is refused is answered at once; uvicorn then discards its body as it comes."""
        if not _may_enter(request, self.token):
            return _refused(401, f"wrong or missing token: set {TOKEN} to the server's")
        if "Content-Length" not in request.headers:
            return _refused(411, "the length of the request must be told: Content-Length")
        length, most = int(request.headers["Content-Length"]), self.limits.max_bytes
        if length > most:
            return _refused(413, f"more than {most} bytes: raise server.max_megabytes or lower reward.batch")
        if self.is_full:
            return self._come_again()
        try:
            return await self._taken_in(request, length)
        except NoRoom:
            return _refused(503, "no memory for more requests now: server.buffered_megabytes", COME_AGAIN)
        except ClientDisconnect:
            return _refused(408, "the client has disconnected")

    async def _taken_in(self, request: Request, length: int) -> Response:
        """Read the request, and only then let it take one of the places."""
        if not self.intake.has_room(length):
            raise NoRoom
        with self.intake.holding(length) as body:
            await self.intake.read(body, request)
            if self.is_full:
                return self._come_again()
            self.held += 1
            try:
                return await self._answer(request, body.whole)
            finally:
                self.held -= 1

    async def _answer(self, request: Request, body: memoryview) -> Response:
        try:
            video, text = unpacked_request(body)
        except ValueError as error:
            return _refused(400, str(error))
        try:
            async with self.scoring:
                if await request.is_disconnected():  # the client has timed out, and will ask again
                    return _refused(408, "the client has disconnected")
                answer = await run_in_threadpool(self._scored, video, text)
                return Response(answer, media_type="application/json")
        except Exception as error:  # 422, not 5xx: clients retry a 5xx, and this would fail again
            log.exception("scoring %d videos", len(text))
            return _refused(422, f"the scorer failed: {type(error).__name__}: {error}")

    def _scored(self, video: torch.Tensor, text: tuple[str, ...]) -> bytes:
        start = time.perf_counter()
        scores = self.reward(video, text)
        return packed_scores(
            scores, time.perf_counter() - start + scores.device_seconds, [*self.served, *scores.source]
        )

    def _come_again(self) -> Response:
        return _refused(503, f"{self.held} requests are held already", COME_AGAIN)


def _may_enter(request: Request, token: str | None) -> bool:
    sent = request.headers.get("Authorization", "")
    return token is None or hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())


def _refused(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return Response(why, status_code=status, headers=headers, media_type="text/plain")


def required_token(host: str) -> str | None:
    """Return the environment's token; ValueError if it cannot be sent, or is missing where other machines reach `host`."""
    token = token_of_environment()
    if token is None and not _is_loopback(host):
        raise ValueError(
            f"server.host={host}: other machines can reach it; set {TOKEN} in the environment, or use 127.0.0.1"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def described(reward: DictConfig) -> list[str]:
    """List the settings that decide what a reward answers, "key=value" each. Of paths and targets only the last part counts.

    So servers with the same model in other folders serve the same.
    """
    settings = manifest.flat(OmegaConf.to_container(reward, resolve=True))
    kept = {key: value for key, value in settings.items() if key.rpartition(".")[2] not in ("device", *SERVERS)}
    return [
        f"{key}={_last_part(value, '.' if key.endswith('_target_') else '/')}" for key, value in sorted(kept.items())
    ]


def _last_part(value: object, separator: str) -> object:
    return value.rstrip(separator).rpartition(separator)[2] if isinstance(value, str) else value


def serve(cfg: DictConfig) -> None:
    """Load the configured reward and serve it until the process is ended."""
    from flash_grpo.run.build import build_reward, checked, device

    token = checked(required_token, cfg.server.host)
    limits = checked(
        Limits,
        max_megabytes=cfg.server.max_megabytes,
        buffered_megabytes=cfg.server.buffered_megabytes,
        read_seconds=cfg.server.read_seconds,
    )
    torch.set_num_threads(cfg.threads)
    reward, name = build_reward(cfg.reward), cfg.reward.get("name", cfg.reward._target_)
    app = application(reward, name, token, limits, device(cfg), described(cfg.reward))
    uvicorn.Server(listener(app, limits, host=cfg.server.host, port=cfg.server.port, log_level="warning")).run()


main = cli.command(serve, about=("server", "reward"))

if __name__ == "__main__":
    main()
