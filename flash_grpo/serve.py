"""`python -m flash_grpo.serve reward=hpsv3 server.port=8700`: serve a reward from its own process and environment.

POST /score takes safetensors (`video` uint8 [B, F, H, W, 3], `text` the UTF-8 bytes of a JSON list) and answers with JSON
(`total`, `parts`, `device_seconds`), or with 503 and Retry-After while too many other requests wait. GET /health tells what
is served, with Retry-After while the server is full. One process scores on one device: for several devices start several
processes, with CUDA_VISIBLE_DEVICES, on different ports. A token, FLASH_GRPO_REWARD_TOKEN in the environment of both sides, is
required unless the server listens on loopback only.
"""

import asyncio
import hmac
import ipaddress
import logging
import os
import time

import torch
from omegaconf import DictConfig
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flash_grpo import cli
from flash_grpo.algorithm.protocols import Reward
from flash_grpo.rewards.wire import TOKEN, packed_scores, unpacked_request

log = logging.getLogger(__name__)
COME_AGAIN = {"Retry-After": "1"}
AT_MOST = (
    4  # requests held at once, including the one being scored; more are refused, because they would fill the memory
)


def application(reward: Reward, name: str, token: str | None, max_bytes: int, device: str = "cpu") -> Starlette:
    """Make the web application that serves `reward`.

    name, device: shown by /health. token: what callers must send; None accepts everybody. max_bytes: of a request's body.
    """
    server = _Server(reward, token, max_bytes)

    async def health(request: Request) -> Response:
        state = {"reward": name, "device": device, "busy": server.scoring.locked()}
        return JSONResponse(state, headers=COME_AGAIN if server.is_full else None)

    return Starlette(routes=[Route("/score", server.score, methods=["POST"]), Route("/health", health)])


class _Server:
    """Scores requests one at a time and holds at most AT_MOST of them. For the arguments see `application`."""

    def __init__(self, reward: Reward, token: str | None, max_bytes: int):
        self.reward, self.token, self.max_bytes = reward, token, max_bytes
        self.scoring, self.held = asyncio.Lock(), 0

    @property
    def is_full(self) -> bool:
        return self.held >= AT_MOST

    async def score(self, request: Request) -> Response:
        if not _may_enter(request, self.token):
            return _refused(401, f"wrong or missing token: set {TOKEN} to the server's")
        if self.is_full:
            await _limited_body(request, self.max_bytes)  # a client that is still sending would not see the answer
            return _refused(503, f"{self.held} requests are held already", COME_AGAIN)
        self.held += 1
        try:
            return await self._answer(request)
        finally:
            self.held -= 1

    async def _answer(self, request: Request) -> Response:
        body = await _limited_body(request, self.max_bytes)
        if body is None:
            return _refused(413, f"more than {self.max_bytes} bytes: raise server.max_megabytes or lower reward.batch")
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
        return packed_scores(scores, time.perf_counter() - start + scores.device_seconds)


def _may_enter(request: Request, token: str | None) -> bool:
    sent = request.headers.get("Authorization", "")
    return token is None or hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())


async def _limited_body(request: Request, max_bytes: int) -> bytes | None:
    """Read the body; return None as soon as it proves too large."""
    if int(request.headers.get("Content-Length", 0)) > max_bytes:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def _refused(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return Response(why, status_code=status, headers=headers, media_type="text/plain")


def required_token(host: str) -> str | None:
    """Return the environment's token; ValueError if there is none and other machines can reach `host`."""
    token = os.environ.get(TOKEN) or None
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


def serve(cfg: DictConfig) -> None:
    """Load the configured reward and serve it until the process is ended."""
    import uvicorn

    from flash_grpo.run.build import build, checked, device

    token = checked(required_token, cfg.server.host)
    torch.set_num_threads(cfg.threads)
    reward, name = build(cfg.reward, "reward"), cfg.reward.get("name", cfg.reward._target_)
    app = application(reward, name, token, int(cfg.server.max_megabytes * 2**20), device(cfg))
    uvicorn.run(app, host=cfg.server.host, port=cfg.server.port, log_level="warning", lifespan="off")


main = cli.command(serve)

if __name__ == "__main__":
    main()
