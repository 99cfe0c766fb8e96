"""Measure, without training, what updates of this configuration would be made of: rewards, siblings, gradients, weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from tqdm import tqdm

from flash_grpo.algorithm.types import PromptBatch
from flash_grpo.measure.gradient_noise import GradientNoise, gradient_noise
from flash_grpo.measure.halves import Weights, gradients_of_halves, joined_weights
from flash_grpo.measure.reward_spread import RewardSpread, noise_share, reward_spread
from flash_grpo.measure.scored import Scored, scored
from flash_grpo.measure.sources import SOURCES, shares
from flash_grpo.training.trainer import Trainer

DRAWS = 2  # each iteration's prompts are rolled out twice, see `gradient_noise`


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of the reward variance within groups that a source explains: mean over repeats and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was measured of one configuration. The sentences of `verdict` are made of this alone."""

    reward: RewardSpread
    video_distance: float
    """RMS distance of two siblings' videos, in grey levels of 255."""

    repeated_noise: float
    """Share of the reward variance within groups that changes if the same videos are scored again."""

    nudged_noise: float
    """The same if each pixel has been moved by at most one grey level before."""

    shares: dict[str, Share]
    gradient: GradientNoise
    weights: Weights


def diagnosed(trainer: Trainer, iterations: int, repeats: int) -> Diagnosis:
    """Measure on the prompts of the first `iterations`; sources of variance on those of the first `repeats`.

    One process. The weights of the model do not change.
    """
    rewards, gradients, weights = [], [], []
    for index, batch in enumerate(tqdm(batches(trainer, iterations), desc="rollouts and gradients", disable=None)):
        seen = scored(trainer, batch, again=index == 0)
        halves, terms = gradients_of_halves(trainer, seen)
        rewards.append(seen)
        gradients += halves
        weights.append(terms)
    half_M = [2 * (index % iterations) + half for index in range(len(rewards)) for half in (0, 1)]
    gram_MM = torch.tensor([[float(one @ other) for other in gradients] for one in gradients])
    return Diagnosis(
        reward=reward_spread(torch.cat([seen.reward_PG for seen in rewards])),
        video_distance=_root_mean_square([distance for seen in rewards for distance in seen.distances]),
        **_noises(rewards[0]),
        shares=_shares(trainer, repeats),
        gradient=gradient_noise(gram_MM, half_M, trainer.layout.num_prompts, trainer.layout.group_size),
        weights=joined_weights(weights),
    )


def batches(trainer: Trainer, iterations: int) -> list[PromptBatch]:
    """Return the batches of the iterations, then their prompts again with other steps and noise."""
    layout, prompts = trainer.layout, trainer.prompts
    drawn = [prompts.drawn(1 + index, layout.num_prompts, trainer.seed) for index in range(iterations)]
    return [
        layout.batch(1 + draw * iterations + index, texts, 0)
        for draw in range(DRAWS)
        for index, texts in enumerate(drawn)
    ]


def _noises(seen: Scored) -> dict[str, float]:
    names = ("repeated_noise", "nudged_noise")
    return {name: noise_share(seen.reward_PG, again) for name, again in zip(names, seen.again_PG, strict=True)}


def _shares(trainer: Trainer, repeats: int) -> dict[str, Share]:
    found = [shares(trainer, repeat) for repeat in tqdm(range(repeats), desc="sources of variance", disable=None)]
    value = {source: [repeat[source] for repeat in found] for source in SOURCES}
    return {source: Share(mean=fmean(value[source]), error=stdev(value[source]) / repeats**0.5) for source in SOURCES}


def _root_mean_square(values: Sequence[float]) -> float:
    """Return the root mean square; 0 of no values, where no two siblings were made together."""
    return float(torch.tensor(values).square().mean().sqrt()) if values else 0.0
