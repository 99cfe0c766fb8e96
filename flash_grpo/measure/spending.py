"""Count what a diagnosis computes, before it does: from masks and keys alone, as the meter counts it while it happens."""

from dataclasses import dataclass

import torch

from flash_grpo.algorithm.cost import Counts, counted, distinct_states, pflop
from flash_grpo.algorithm.noise import noise_keys
from flash_grpo.measure.diagnosis import DRAWS
from flash_grpo.measure.sources import redraws
from flash_grpo.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What a diagnosis computes; backwards and their forwards at most, because groups without spread are left out."""

    forwards: int
    """Of the transformer, per sample; two for each velocity with guidance."""

    backwards: int
    videos: int
    """Videos that are decoded."""

    scored: int
    pflop: float
    """Of the transformer."""

    gradients_gb: float
    """10^9 bytes of host memory that hold the gradients."""

    iteration_forwards: float
    """An iteration of training in forwards: its FLOPs over those of one forward."""


def spending(trainer: Trainer, iterations: int, repeats: int) -> Spending:
    """Return what `diagnosis.diagnosed` computes with these arguments."""
    policy, layout, method = trainer.policy, trainer.layout, trainer.method
    per_velocity, kl = policy.evaluations_per_velocity, bool(method.kl_weight)
    trained = [_trained(trainer, 1 + index) for index in range(DRAWS * iterations)]
    redrawn = sum(_redrawn_velocities(trainer, 1 + repeat) for repeat in range(repeats))
    rollouts = layout.num_prompts * layout.group_size
    made = rollouts * (DRAWS * iterations + repeats * len(redraws(method)))
    forwards = int(sum(counts.forwards(per_velocity, kl) for counts in trained)) + per_velocity * redrawn
    backwards = int(sum(counts.backwards(per_velocity) for counts in trained))
    parameters = sum(parameter.numel() for parameter in policy.trainable().values())
    of_training = sum(counts.pflop(per_velocity, policy.flops, kl) for counts in trained) / len(trained)
    return Spending(
        forwards=forwards,
        backwards=backwards,
        videos=made,
        scored=made + 2 * rollouts,
        pflop=pflop(policy.flops, forwards, backwards),
        gradients_gb=4e-9 * parameters * 2 * DRAWS * iterations,
        iteration_forwards=of_training / (1e-15 * policy.flops.forward),
    )


def described(cost: Spending) -> str:
    """Return the cost in a line."""
    return (
        f"it computes {cost.forwards:,} forwards and {cost.backwards:,} backwards of the transformer ({cost.pflop:.3g} PFLOP), "
        f"{cost.videos:,} decodes and {cost.scored:,} scores, and keeps {cost.gradients_gb:.2g} GB of gradients; an iteration "
        f"of training costs {cost.iteration_forwards:,.0f} forwards"
    )


def _trained(trainer: Trainer, iteration: int) -> Counts:
    maker = trainer.rollouts
    return counted(
        trainer.method, trainer.layout, len(trainer.schedule), trainer.seed, iteration, maker.at_once, path=maker.path
    )


def _redrawn_velocities(trainer: Trainer, iteration: int) -> int:
    """Return the velocities of the four sets of rollouts of `sources.shares`."""
    batch, method, velocities = trainer.batch(iteration), trainer.method, 0
    for seeds in redraws(method):
        keys = noise_keys(batch, seeds["initial_noise"], method.initial_noise, sde_seed=seeds["sde_noise"])
        mask_BT = method.plan(batch, len(trainer.schedule), seeds["step"])
        every_B = torch.ones(len(batch), dtype=torch.bool)
        stochastic = method.needs.stochastic
        velocities += distinct_states(keys, mask_BT, every_B, batch.optimizer_step_B, stochastic)[0]
    return velocities
