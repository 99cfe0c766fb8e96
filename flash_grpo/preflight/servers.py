"""Ask each reward server alone whether it answers, how fast, and whether it says the same twice."""

import time
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.measure.stopwatch import digits
from flash_grpo.run.build import build_reward

PATIENCE_S = 10.0  # without an answer
ANSWER_S = 120.0  # for one answer


def looked_at(cfg: DictConfig, video_BFHWC: torch.Tensor, text: tuple[str, ...], is_main: bool) -> list[dict[str, Any]]:
    """Return what each server of the reward and of the held-out one did with the first videos.

    is_main: only the main rank asks, so that a server has one request at a time; others return nothing.
    """
    if not is_main:
        return []
    nodes = [found for key in ("reward", "evaluation.held_out") for found in served(OmegaConf.select(cfg, key), key)]
    return [_asked(key, node, url, video_BFHWC, text) for key, node in nodes for url in node.urls]


def served(node: Any, key: str) -> list[tuple[str, DictConfig]]:
    """Return the parts of a reward that servers compute, each with its key."""
    if not isinstance(node, DictConfig):
        return []
    if "urls" in node:
        return [(key, node)]
    return [found for name in node for found in served(node[name], f"{key}.{name!s}")]


def _asked(key: str, node: DictConfig, url: str, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> dict[str, Any]:
    """Have one server score one request twice. difference: the largest between both answers. seconds: of a video."""
    count = min(node.batch, len(text))
    alone = node.copy()
    alone.urls = [url]
    alone.give_up_after, alone.max_wait = PATIENCE_S, ANSWER_S
    alone.timeout = min(node.timeout, ANSWER_S)
    found: dict[str, Any] = {"key": key, "url": url, "seconds": None, "difference": None, "failure": ""}
    try:
        reward, answers = build_reward(alone, key), list[torch.Tensor]()
        for _ in range(2):
            began = time.perf_counter()
            scores = reward(video_BFHWC[:count], text[:count])
            found["seconds"] = digits((time.perf_counter() - began) / count)
            answers.append(torch.stack([scores.total_B, *scores.parts.values()]))
        found["difference"] = float((answers[0] - answers[1]).abs().max())
    except (RewardError, ValueError) as error:
        found["failure"] = " ".join(str(error).split())
    return found
