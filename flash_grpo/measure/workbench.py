"""Measure gradients, reward variances and their alignment on a trainer whose weights never change."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.plans import OneStep
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.sde import ode_step, rectification_factor
from flash_grpo.algorithm.types import Rollouts
from flash_grpo.algorithm.weighting import inverse_lambda, uniform
from flash_grpo.measure.sources import SOURCES, group_correlation, rewards_by_seeds
from flash_grpo.run import compose
from flash_grpo.run.build import build
from flash_grpo.run.targets import check_tree
from flash_grpo.training.iteration_record import over_ranks
from flash_grpo.training.trainer import Trainer

HALF = 10  # weights are divided by their mean over steps 0-9, so that both weightings have the same scale


@dataclass(kw_only=True)
class Workbench:
    """Measurements on a trainer whose weights never change: one function for each quantity.

    noise: name of the trainer's SDE noise schedule. cfg: the run's configuration; `cfg.measure` sets the repeats. Each
    function returns a list of measurements: dictionaries, as in mechanism.json.
    """

    trainer: Trainer
    noise: str
    cfg: DictConfig

    def gradient_norm(self) -> list[dict[str, Any]]:
        """Measure the gradient's norm with one stochastic step, for each step and weighting.

        Within a repeat all steps have the same prompts and initial noise, so that only the step differs.
        """
        schedule, measurements = self.trainer.schedule, []
        lambda_T = rectification_factor(schedule)
        weight_TW = {"uniform": uniform(schedule), "inverse_lambda": inverse_lambda(schedule)}
        for repeat in self._repeats("gradient_norm"):
            for step in range(len(lambda_T) - 1):
                method = replace(self.trainer.method, plan=OneStep(first_step=step, last_step=step))
                rollouts, advantage_PG = self._rollouts(method, 1 + repeat)
                for weighting, weight_T in weight_TW.items():
                    gradient = ascent(self.trainer, rollouts, advantage_PG, weight_T / weight_T[:HALF].mean())
                    measurements.append(
                        {
                            "quantity": "gradient_norm",
                            "noise": self.noise,
                            "step": step,
                            "lambda": float(lambda_T[step]),
                            "weighting": weighting,
                            "value": float(gradient.norm()),
                            "repeat": repeat,
                        }
                    )
        return measurements

    def variance_share(self) -> list[dict[str, Any]]:
        """Measure the share of reward variance that each source explains, by pick-freeze: keep the source, redraw the others.

        Each repeat and source gives one value, over all groups of an iteration.
        """
        measurements = []
        for repeat in self._repeats("variance_share"):
            first_PG = one_step_rewards(self.trainer, 1 + repeat, dict.fromkeys(SOURCES, 0))
            for index, source in enumerate(SOURCES):
                seeds = {other: 0 if other == source else 1 + index for other in SOURCES}
                value = group_correlation(first_PG, one_step_rewards(self.trainer, 1 + repeat, seeds))
                measurements.append(
                    {
                        "quantity": "variance_share",
                        "noise": self.noise,
                        "source": source,
                        "value": value,
                        "repeat": repeat,
                    }
                )
        return measurements

    def alignment(self) -> list[dict[str, Any]]:
        """Measure the cosine of each method's ascent direction with the exact gradient, all on the same iterations.

        device_seconds: CPU seconds of the method's rollout, reward and gradient.
        """
        exact = exact_gradient(self.trainer, self.cfg.measure.exact_noises, self.noise)
        measurements = []
        for name, method in self._methods():
            for repeat in self._repeats("alignment", name):
                start = time.process_time()
                rollouts, advantage_PG = self._rollouts(method, 1 + repeat)
                gradient = ascent(self.trainer, rollouts, advantage_PG, method.weigh(self.trainer.schedule))
                measurements.append(
                    {
                        "quantity": "alignment",
                        "method": name,
                        "noise": self.noise,
                        "value": float(torch.cosine_similarity(gradient, exact, dim=0)),
                        "device_seconds": time.process_time() - start,
                        "repeat": repeat,
                    }
                )
        return measurements

    def _repeats(self, quantity: str, name: str = "") -> Iterable[int]:
        return tqdm(range(self.cfg.measure.repeats[quantity]), desc=f"{quantity} {self.noise} {name}", disable=None)

    def _methods(self) -> Iterator[tuple[str, Method]]:
        """Yield the methods of the ablation sweep with their names."""
        for ablation in self.cfg.measure.ablations:
            method = build(compose.composed([f"ablations={ablation}"]).method, "method")
            check_tree(method, self.trainer.layout, len(self.trainer.schedule))
            yield method.name, method

    def _rollouts(self, method: Method, iteration: int) -> tuple[Rollouts, torch.Tensor]:
        """Make one iteration's rollouts by the method; return them and their advantages [P, G]."""
        trainer = self.trainer
        trainer.method = method
        rollouts = trainer.rollouts.all(trainer.batch(iteration))
        scores = trainer.rollouts.reward(rollouts.video_BFHWC, rollouts.batch.text)
        return rollouts, method.advantage(over_ranks(trainer.ranks, rollouts.batch, scores.total_B))


def ascent(trainer: Trainer, rollouts: Rollouts, advantage_PG: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
    """Return minus the gradient of the loss as one flat vector; the optimizer does not step."""
    steps = trainer.updater.steps(rollouts, advantage_PG)
    weight_N = weight_T[steps.taken.step_N]
    for _ in trainer.updater.backward(steps, rollouts.condition_BMD, weight_N, len(steps), "measured "):
        pass
    trainer.journal.done.clear()
    return -_taken_gradient(trainer.policy)


def one_step_rewards(trainer: Trainer, iteration: int, seeds: Mapping[str, int]) -> torch.Tensor:
    """Return rewards [P, G] of one-step rollouts whose steps differ; `seeds` has one seed for each of SOURCES."""
    return rewards_by_seeds(trainer, iteration, seeds, OneStep(first_step=0, last_step=9, shared_by="rollout"))


def exact_gradient(trainer: Trainer, noises: int, label: str) -> torch.Tensor:
    """Return the gradient of the mean reward over all prompts, through the whole ODE, as one flat vector.

    noises: initial noises per prompt. label: shown beside the progress bar. It needs a reward with a differentiable
    `score` and a differentiable decoder: the tiny world's.
    """
    texts, policy = trainer.prompts.test, trainer.policy
    for index in tqdm(range(noises), desc=f"exact gradient {label}", disable=None):
        noise = keyed.normals(policy.latent_shape, [(trainer.seed, "exact", t, index) for t in texts])
        (_differentiable_reward(trainer, noise, texts).mean() / noises).backward()
    return _taken_gradient(policy)


def _differentiable_reward(trainer: Trainer, x_BCFHW: torch.Tensor, texts: tuple[str, ...]) -> torch.Tensor:
    """Return rewards [B] of deterministic rollouts from the given initial noise; gradients flow to the policy."""
    policy: Any = trainer.policy  # the tiny world's: it has a codec, and its reward a score with a gradient
    reward: Any = trainer.rollouts.reward.reward
    condition_BMD, schedule = policy.encode(texts), trainer.schedule
    for step, timestep in enumerate(schedule.timestep_T):
        velocity_BCFHW = policy.velocity(x_BCFHW, timestep.expand(len(x_BCFHW)), condition_BMD)
        x_BCFHW = ode_step(x_BCFHW, velocity_BCFHW, schedule.dt_T[step])
    return reward.score(policy.codec.decode(x_BCFHW).clamp(0, 1), texts)["total"]


def _taken_gradient(policy: Policy) -> torch.Tensor:
    """Return the accumulated gradient as one flat vector, and clear it."""
    parameters = list(policy.trainable().values())
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])  # type: ignore[union-attr] # all have one
    for parameter in parameters:
        parameter.grad = None
    return flat
