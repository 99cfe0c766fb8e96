"""Tell what scoring takes: which rewards, seconds and memory of each, and how many servers keep up with the ranks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm import ranges
from flash_grpo.records.prices import load_prices
from flash_grpo.run.settings import ConfigError

FRAMES = "flash_grpo.rewards.frames.FrameReward"
VIDEOALIGN = "flash_grpo.rewards.videoalign.VideoAlign"
COMPOSITE = "flash_grpo.rewards.composite.CompositeReward"
REMOTE = "flash_grpo.rewards.client.RemoteReward"
GIGABYTES = {"hpsv3": 16.6, "pickscore": 3.9, "aesthetic": 1.7, "videoalign": 4.9}
"""Weights of each network: 8.3e9 parameters of Qwen2-VL-7B in bfloat16, 0.986e9 of CLIP ViT-H/14 and 0.428e9 of ViT-L/14 in
float32, 2.4e9 of Qwen2-VL-2B with its head in bfloat16. What scoring takes besides is `WORKING`.
"""
PRICED_FRAMES = 81  # of the video that prices.toml's seconds are for; networks score frames
WORKING = 2.0  # GB beside the weights while images are scored; assumed, not measured


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How videos are scored. networks: names of rewards that are networks. seconds: of one device for one video.

    unpriced: networks whose price nobody knows, left out of the seconds. servers: how many score; 0 if the ranks do.
    sources: of the prices.
    """

    networks: tuple[str, ...] = ()
    seconds: float = 0.0
    unpriced: tuple[str, ...] = ()
    servers: int = 0
    sources: tuple[str, ...] = ()

    @property
    def gigabytes(self) -> float:
        """Return the memory that scoring takes in one process, a rank's or a server's."""
        return sum(GIGABYTES.get(name, 0.0) for name in self.networks) + (WORKING if self.networks else 0.0)


def scoring_of(node: DictConfig, cfg: DictConfig, recipe_reward: str) -> Scoring:
    """Return how a reward's node scores. recipe_reward: what the model's recipe trains on; a server is taken to serve it.

    What is not a network, such as a closed formula or a reward of one's own, is taken to cost nothing.
    """
    servers = _servers(node) if node._target_ == REMOTE else 0
    names = (cfg.planning.served_reward or recipe_reward,) if servers else tuple(_networks(node))
    prices = load_prices().rewards
    if servers and names[0] not in GIGABYTES:
        raise ConfigError(f"planning.served_reward={names[0]}: expected one of {', '.join(GIGABYTES)}")
    priced = [prices[name] for name in names if name in prices]
    return Scoring(
        networks=names,
        seconds=cfg.model.frames / PRICED_FRAMES * sum(price.seconds for price in priced),
        unpriced=tuple(name for name in names if name not in prices),
        servers=servers,
        sources=tuple(
            f"{name}: {prices[name].seconds:.4g} s a video, {prices[name].source}" for name in names if name in prices
        ),
    )


def _servers(node: DictConfig) -> int:
    try:
        ranges.some_of("reward.urls", node.get("urls"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return len(node.urls)


def _networks(node: DictConfig) -> Iterator[str]:
    """Yield the names of the networks in a reward, those of a sum each."""
    if node._target_ == FRAMES:
        yield str(OmegaConf.select(node, "name"))
    elif node._target_ == VIDEOALIGN:
        yield "videoalign"
    elif node._target_ == COMPOSITE:
        for part in _parts(node):
            yield from _networks(part)


def _parts(node: DictConfig) -> list[DictConfig]:
    """Return the rewards of a sum; ConfigError for what is none."""
    rewards = node.get("rewards")
    parts = list(rewards.values()) if isinstance(rewards, DictConfig) else []
    if not parts or not all(isinstance(part, DictConfig) and "_target_" in part for part in parts):
        raise ConfigError("reward.rewards: must be a section of rewards, as in flash_grpo/conf/reward/composite.yaml")
    return parts


def servers_needed(ranks: int, score: float, making: float) -> int:
    """Return how many reward servers, each on one device, keep up with the ranks, so that no rank waits.

    score: seconds of one server for one video. making: seconds of one rank for one video, its rollout and decode. The ranks
    make ranks / making videos a second, and n servers score n / score: n >= ranks · score / making.
    """
    return math.ceil(ranks * score / making - 1e-9) if score and making else 0
