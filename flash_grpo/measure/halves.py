"""Compute the policy gradients of the two halves of a batch's prompts, as an update would, and leave the weights alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.types import LossTerms
from flash_grpo.measure.scored import Scored
from flash_grpo.training.trainer import Trainer
from flash_grpo.training.update import weights


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What an update makes of the trained steps of rollouts, before anything was trained."""

    smallest: float
    largest: float
    effective: float
    """(Σw)²/(N·Σw²) of N trained steps: the share of them that, with equal weights, would be as noisy."""

    advantage: float
    """Mean |advantage| of all rollouts."""

    drift: float
    """Largest |ratio - 1| of a replayed step; 0 if rollout and replay compute alike."""

    clipped: float
    """Share of trained steps whose ratio is outside method.ratio_clip before any update."""


def gradients_of_halves(trainer: Trainer, seen: Scored) -> tuple[list[torch.Tensor], Weights]:
    """Return the gradients of the batch's two halves, flat, on the CPU, and what the update's weights are like.

    Their mean is the gradient of an update on the whole batch, if it makes one optimizer step; of an odd number of prompts
    the last one is left out.
    """
    updater, method, rollouts = trainer.updater, trainer.method, seen.rollouts
    advantage_PG = method.advantage(seen.reward_PG)
    steps = updater.steps(rollouts, advantage_PG)
    steps = steps.chosen(steps.trained_N.nonzero().flatten())
    weight_N = weights(method.weigh(trainer.schedule), method.rescale, steps.taken.step_N, len(steps), trainer.ranks)
    num_prompts = rollouts.batch.num_prompts
    gradients, terms = [], list[LossTerms]()
    for half in (0, 1):
        rows = (steps.prompt_N // (num_prompts // 2) == half).nonzero().flatten()
        mine = steps.chosen(rows)
        terms += updater.backward(mine, rollouts.condition_BMD, weight_N[rows], len(steps), "diagnosed ")
        trainer.journal.done.clear()
        gradients.append(_taken(trainer.policy) * num_prompts / (num_prompts // 2))
    return gradients, _described(weight_N, advantage_PG, terms)


def joined_weights(parts: Sequence[Weights]) -> Weights:
    """Return what the weights of several batches are like: extremes of extremes, means of means."""

    def mean(name: str) -> float:
        return sum(getattr(part, name) for part in parts) / len(parts)

    return Weights(
        smallest=min(part.smallest for part in parts),
        largest=max(part.largest for part in parts),
        effective=mean("effective"),
        advantage=mean("advantage"),
        drift=max(part.drift for part in parts),
        clipped=mean("clipped"),
    )


def _described(weight_N: torch.Tensor, advantage_PG: torch.Tensor, terms: Sequence[LossTerms]) -> Weights:
    """Describe the steps of one batch; of none, as equal weights that are not clipped."""
    weight_N = weight_N if len(weight_N) else torch.ones(1)
    ratio_N = torch.cat([torch.ones(1), *(term.ratio_N.float() for term in terms)])
    clipped_N = torch.cat([torch.empty(0), *(term.clipped_N.float() for term in terms)])
    return Weights(
        smallest=float(weight_N.min()),
        largest=float(weight_N.max()),
        effective=float(weight_N.sum() ** 2 / weight_N.square().sum() / len(weight_N)),
        advantage=float(advantage_PG.abs().mean()),
        drift=float((ratio_N - 1).abs().max()),
        clipped=float(clipped_N.mean()) if len(clipped_N) else 0.0,
    )


def _taken(policy: Policy) -> torch.Tensor:
    """Return the accumulated gradient as one flat float32 vector on the CPU, and clear it; zeros where there is none."""
    parameters, parts = policy.trainable().values(), []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts.append(gradient.detach().flatten().float().cpu())
        parameter.grad = None
    return torch.cat(parts)
