"""Measure which source of randomness makes siblings' rewards differ, by pick-freeze: keep a source, draw the others anew."""

from collections.abc import Mapping

import torch

from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.noise import noise_keys
from flash_grpo.algorithm.plans import Plan
from flash_grpo.training.iteration_record import over_ranks
from flash_grpo.training.trainer import Trainer

SOURCES = ("step", "initial_noise", "sde_noise")  # sources of randomness in a rollout


def rewards_by_seeds(
    trainer: Trainer, iteration: int, seeds: Mapping[str, int], plan: Plan, initial: str | float = "independent"
) -> torch.Tensor:
    """Return rewards [P, G] of rollouts on the whole grid. seeds: one for each of SOURCES. initial: as of `noise_keys`."""
    batch, maker = trainer.batch(iteration), trainer.rollouts
    parts = batch.split(maker.at_once)
    masks = plan(batch, len(trainer.schedule), seeds["step"]).split([len(part) for part in parts])
    scores = []
    for part, mask_BT in zip(parts, masks, strict=True):
        keys = noise_keys(part, seeds["initial_noise"], initial, sde_seed=seeds["sde_noise"])
        scores.append(maker.reward(maker.by_keys(part, mask_BT, keys).video_BFHWC, part.text).total_B)
        maker.meter.count(scored=len(part))
    return over_ranks(trainer.ranks, batch, torch.cat(scores))


def group_correlation(first_PG: torch.Tensor, second_PG: torch.Tensor) -> float:
    """Return the correlation of two sets of rewards within their groups, over all groups together; 0 if none varies."""
    first_PG, second_PG = (reward_PG - reward_PG.mean(1, keepdim=True) for reward_PG in (first_PG, second_PG))
    scale = float(first_PG.square().mean() + second_PG.square().mean()) / 2
    return float(first_PG.mul(second_PG).mean()) / scale if scale else 0.0


def shares(trainer: Trainer, repeat: int) -> dict[str, float]:
    """Return each source's share of the reward variance within groups, on the prompts of iteration 1 + `repeat`.

    By the method's own plan and initial noise, on the whole grid.
    """
    method = trainer.method
    first_PG, *anew = (
        rewards_by_seeds(trainer, 1 + repeat, seeds, method.plan, method.initial_noise) for seeds in redraws(method)
    )
    return {source: group_correlation(first_PG, reward_PG) for source, reward_PG in zip(SOURCES, anew, strict=True)}


def redraws(method: Method) -> list[dict[str, int]]:
    """Return the seeds of four sets of rollouts: the first, and one for each of SOURCES that keeps it and draws anew the rest.

    The SDE noise is kept together with its steps: at another step another noise is drawn. An initial noise that siblings
    share is always kept: they do not differ in it.
    """
    kept = {"step": {"step"}, "initial_noise": {"initial_noise"}, "sde_noise": {"sde_noise", "step"}}
    always = {"initial_noise"} if method.initial_noise == "shared" else set[str]()
    return [dict.fromkeys(SOURCES, 0)] + [
        {other: 0 if other in kept[source] | always else 1 + index for other in SOURCES}
        for index, source in enumerate(SOURCES)
    ]
