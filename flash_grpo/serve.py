"""`python -m flash_grpo.serve reward=hpsv3 server.port=8700`: a reward in its own process and environment.

POST /score takes safetensors (`video` uint8 [B, F, H, W, 3], `text` the UTF-8 bytes of a JSON list) and answers with JSON
(`total`, `parts`, `device_seconds`), or with 503 and Retry-After where enough others wait; GET /health tells what is
served, with Retry-After where there is no room. One process scores on one device: start one for each, with
CUDA_VISIBLE_DEVICES, on ports of their own. A token, FLASH_GRPO_REWARD_TOKEN in the environment of both sides, is required
unless the server listens on loopback only.
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
AT_MOST = 4  # requests at once, the one that is scored among them: others come again, instead of filling the memory


def application(reward: Reward, name: str, token: str | None, max_bytes: int, device: str = "cpu") -> Starlette:
    """The web application. token: what callers must send, None lets everybody in. max_bytes: of a request's body."""
    turn, inside = asyncio.Lock(), 0

    def scored(video: torch.Tensor, text: tuple[str, ...]) -> bytes:
        start = time.perf_counter()
        scores = reward(video, text)
        return packed_scores(scores, time.perf_counter() - start + scores.device_seconds)

    async def score(request: Request) -> Response:
        nonlocal inside
        if not _may_enter(request, token):
            return _refused(401, f"a token is needed: set {TOKEN} to the server's")
        if inside >= AT_MOST:
            await _limited_body(request, max_bytes)  # the answer to a body that is not read would be lost
            return _refused(503, f"{inside} requests are here already", COME_AGAIN)
        inside += 1
        try:
            return await answer_to(request)
        finally:
            inside -= 1

    async def answer_to(request: Request) -> Response:
        body = await _limited_body(request, max_bytes)
        if body is None:
            return _refused(413, f"more than {max_bytes} bytes: raise server.max_megabytes or lower reward.batch")
        try:
            video, text = unpacked_request(body)
        except ValueError as error:
            return _refused(400, str(error))
        try:
            async with turn:
                if await request.is_disconnected():  # it has lost patience, and asks again
                    return _refused(408, "nobody waits for it")
                return Response(await run_in_threadpool(scored, video, text), media_type="application/json")
        except Exception as error:  # the scorer's own; 5xx is left to a server that is going down, which is asked again
            log.exception("scoring %d videos", len(text))
            return _refused(422, f"the scorer failed: {type(error).__name__}: {error}")

    async def health(request: Request) -> Response:
        told = {"reward": name, "device": device, "busy": turn.locked()}
        return JSONResponse(told, headers=COME_AGAIN if inside >= AT_MOST else None)

    return Starlette(routes=[Route("/score", score, methods=["POST"]), Route("/health", health)])


def _may_enter(request: Request, token: str | None) -> bool:
    sent = request.headers.get("Authorization", "")
    return token is None or hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())


async def _limited_body(request: Request, max_bytes: int) -> bytes | None:
    """The body, or None as soon as it is known to be too large."""
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
    """The environment's token; ValueError where there is none and others than this machine could call."""
    token = os.environ.get(TOKEN) or None
    if token is None and not _is_loopback(host):
        raise ValueError(f"server.host={host}: others can reach it; set {TOKEN} in the environment, or use 127.0.0.1")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(cfg: DictConfig) -> None:
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
