"""Make a batch's rollouts and score them: once, or three times to see what the reward adds of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from flash_grpo.algorithm.types import PromptBatch, Rollouts
from flash_grpo.measure.reward_spread import nudged, video_distance
from flash_grpo.training.iteration_record import over_ranks
from flash_grpo.training.rollouts import joined_rollouts
from flash_grpo.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A batch's rollouts, without their videos, and what was seen of these."""

    rollouts: Rollouts
    reward_PG: torch.Tensor
    again_PG: tuple[torch.Tensor, ...]
    """Of the same videos scored again, and with each pixel moved by at most one grey level; empty if they were scored once."""

    distances: list[float]
    """RMS distance of siblings in grey levels, for each group (on a path, for siblings with the same step)."""


def scored(trainer: Trainer, batch: PromptBatch, again: bool) -> Scored:
    """Make the batch's rollouts and score them, `again` or once. Videos are let go part by part."""
    maker, made, distances = trainer.rollouts, list[Rollouts](), list[float]()
    scores: list[list[torch.Tensor]] = [[], [], []] if again else [[]]
    for route in maker.routes(batch):
        rollouts = maker.make(route, "diagnosed", lambda: None)
        trainer.journal.done.clear()
        video_BFHWC, text = rollouts.video_BFHWC, route.batch.text
        distances += _distances(route.batch, video_BFHWC)
        for index, kept in enumerate(scores):
            shown = nudged(video_BFHWC, trainer.seed, batch.iteration, len(made)) if index == 2 else video_BFHWC
            kept.append(maker.reward(shown, text).total_B)
            maker.meter.count(scored=len(text))
        made.append(replace(rollouts, video_BFHWC=video_BFHWC[:0].clone()))
    reward_PG, *again_PG = (over_ranks(trainer.ranks, batch, torch.cat(kept)) for kept in scores)
    return Scored(
        rollouts=joined_rollouts(batch, made), reward_PG=reward_PG, again_PG=tuple(again_PG), distances=distances
    )


def _distances(batch: PromptBatch, video_BFHWC: torch.Tensor) -> Iterator[float]:
    for prompt in batch.prompt_B.unique():
        mine = batch.prompt_B == prompt
        if mine.sum() > 1:
            yield video_distance(video_BFHWC[mine])
