"""One iteration: rollouts, rewards, optimizer steps. It never learns which method runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from flash_grpo.algorithm.batches import Layout, Prompts
from flash_grpo.algorithm.denoise import SdeNoise, denoise, initial_noise, joined_rollouts, sde_noise
from flash_grpo.algorithm.loss import clipped_surrogate, gaussian_kl
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.protocols import Asked, Policy, Reward, RewardError, ask
from flash_grpo.algorithm.sde import log_prob, sde_mean, sde_noise_std
from flash_grpo.algorithm.types import (
    FlowSchedule,
    LossTerms,
    PromptBatch,
    Rollouts,
    Scores,
    Trained,
    Transitions,
    joined_scores,
    joined_trained,
)
from flash_grpo.algorithm.weighting import rescaled_to_mean_one
from flash_grpo.records.schema import IterationRecord
from flash_grpo.training.ema import EMA
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks


class DriftError(RuntimeError):
    """Rollout and replay disagree by more than the clip range: training would follow rounding, not the reward."""


Once = Callable[[str, Callable[[], Any]], Any]


def each_time(name: str, work: Callable[[], Any]) -> Any:
    """In place of `Journal.once`, where nothing is to be remembered."""
    return work()


@dataclass(kw_only=True)
class Trainer:
    """Everything an iteration needs. `rollout_batch` and `update_batch` bound memory and do not change results."""

    policy: Policy
    reward: Reward
    prompts: Prompts
    layout: Layout
    method: Method
    schedule: FlowSchedule
    optimizer: torch.optim.Optimizer
    ema: EMA
    ranks: Ranks
    meter: Meter
    journal: Journal
    seed: int
    max_gradient_norm: float
    rollout_batch: int
    update_batch: int
    optimizer_steps: int = 0

    def iterate(self, iteration: int) -> IterationRecord:
        """Runs iteration 1, 2, … and tells what happened, over all ranks."""
        text_P = self.prompts.drawn(iteration, self.layout.num_prompts, self.seed)
        batch = self.layout.batch(iteration, text_P, self.ranks.rank)
        rollouts, scores = self.journal.once("rollouts", lambda: self.scored(batch))
        reward_PG = self.over_ranks(batch, scores.total_B)
        _refuse_unusable(reward_PG, text_P, iteration)
        with self.meter.phase("update"):
            trained = self.update(rollouts, self.method.advantage(reward_PG))
        self.journal.done.clear()
        return self._record(iteration, batch, scores, reward_PG, trained)

    def scored(self, batch: PromptBatch) -> tuple[Rollouts, Scores]:
        """The batch's rollouts, without their videos, and scores. Rewards that others compute come in meanwhile."""
        chunks, asked = batch.split(self.rollout_batch), {}
        with self.meter.phase("rollout"):
            self.policy.prefetch(batch.text)
        for index, chunk in enumerate(chunks):
            with self.meter.phase("rollout", whole=True):
                part = self.journal.once(f"rollouts/{index}", partial(self.rollout_at_once, chunk))
            with self.meter.phase("reward"):
                if f"scores/{index}" not in self.journal.done:
                    asked[index] = ask(self.reward, part.video_BFHWC, chunk.text)
                self.journal.tried(lambda: self._collect(asked))
        with self.meter.phase("reward"):
            self.journal.wait(lambda: self._collect(asked))
        done = self.journal.done
        scores = [done.pop(f"scores/{index}") for index in range(len(chunks))]
        rollouts = [done[f"rollouts/{index}"] for index in range(len(chunks))]
        return joined_rollouts(batch, rollouts), joined_scores(scores)

    def _collect(self, asked: dict[int, Asked]) -> bool:
        """Notes the scores that are there, whose videos are not needed any more; whether none is missing."""
        for index in [index for index, one in asked.items() if one.ready()]:
            scores = asked.pop(index).get()
            self.meter.charge(scores.device_seconds)
            part = self.journal.done[f"rollouts/{index}"]
            self.journal.done[f"rollouts/{index}"] = replace(part, video_BFHWC=part.video_BFHWC[:0].clone())
            self.journal.done[f"scores/{index}"] = scores
        return not asked

    def rollout(self, batch: PromptBatch) -> Rollouts:
        """The batch's rollouts with their videos, `rollout_batch` at a time."""
        return joined_rollouts(batch, [self.rollout_at_once(chunk) for chunk in batch.split(self.rollout_batch)])

    def rollout_at_once(self, batch: PromptBatch) -> Rollouts:
        """All randomness drawn from the run's seed."""
        return self.rollout_from(
            batch,
            mask_BT=self.method.plan(batch, len(self.schedule), self.seed),
            noise_BCFHW=initial_noise(batch, self.policy.latent_shape, self.seed, self.method.initial_noise),
            draw=sde_noise(batch, self.policy.latent_shape, self.seed),
        )

    def rollout_from(
        self, batch: PromptBatch, mask_BT: torch.Tensor, noise_BCFHW: torch.Tensor, draw: SdeNoise
    ) -> Rollouts:
        """The batch's rollouts from the given mask and noise."""
        condition_BMD = self.policy.encode(batch.text)
        noise_BCFHW = noise_BCFHW.to(condition_BMD.device)
        latent_BCFHW, transitions = denoise(
            self.policy, condition_BMD, noise_BCFHW, self.schedule, mask_BT, draw, self.journal.leave_if_asked
        )
        self.meter.count(forwards=len(batch) * len(self.schedule) * self.policy.evaluations_per_velocity)
        return Rollouts(
            batch=batch,
            condition_BMD=condition_BMD,
            video_BFHWC=self.policy.decode(latent_BCFHW),
            transitions=transitions.cpu(),  # those of an iteration fill a GPU: method=full on 8 ranks makes 15 GB a rank
        )

    def update(self, rollouts: Rollouts, advantage_PG: torch.Tensor) -> Trained:
        """The iteration's optimizer steps, each on its share of the prompts. Zero advantages are dropped (release)."""
        transitions, batch = rollouts.transitions, rollouts.batch
        prompt_N = batch.prompt_B[transitions.rollout_N]
        advantage_N = advantage_PG[prompt_N, batch.sibling_B[transitions.rollout_N]]
        optimizer_step_N = self.layout.optimizer_step_of(prompt_N)
        parts = []
        for index in range(self.layout.optimizer_steps):
            rows = ((optimizer_step_N == index) & (advantage_N != 0)).nonzero().flatten()
            step = partial(self.step, transitions[rows], rollouts.condition_BMD, advantage_N[rows], f"step {index}")
            parts.append(self.journal.once(f"step {index}", step))
        return joined_trained(parts)

    def step(
        self, transitions: Transitions, condition_BMD: torch.Tensor, advantage_N: torch.Tensor, name: str
    ) -> Trained:
        """One optimizer step on the given transitions of this rank and on those of all others; `name`: in the journal."""
        total = int(self.ranks.sum(torch.tensor(len(transitions))))
        weight_N = self.weights(transitions.step_N, total)
        parts = self.backward(transitions, condition_BMD, advantage_N, weight_N, total, self.journal.once, f"{name}/")
        terms = [part for part in parts if part]
        gradient_norm = self.apply_gradients() if total else 0.0
        ratio_N = torch.cat([term.ratio_N for term in terms]) if terms else torch.ones(0)
        return Trained(
            terms=terms,
            weight_N=weight_N,
            advantage_N=advantage_N,
            step_N=transitions.step_N,
            gradient_norms=[gradient_norm],
            first_ratio_N=ratio_N,
        )

    def weights(self, step_N: torch.Tensor, total: int) -> torch.Tensor:
        """The method's weights, rescaled over the optimizer step's `total` transitions of all ranks if it says so."""
        weight_T = self.method.weigh(self.schedule)
        weight_N = weight_T[step_N]
        if not self.method.rescale or not total:
            return weight_N
        mean = float(self.ranks.sum(weight_N.double().sum())) / total
        return rescaled_to_mean_one(weight_N, mean, varies=bool((weight_T != weight_T[0]).any()))

    def backward(
        self,
        transitions: Transitions,
        condition_BMD: torch.Tensor,
        advantage_N: torch.Tensor,
        weight_N: torch.Tensor,
        total: int,
        once: Once = each_time,
        name: str = "",
    ) -> Iterator[LossTerms | None]:
        """Adds this rank's share of the gradient of the mean loss over `total`, micro-batch by micro-batch.

        All ranks go through as many as the one with the most transitions; None stands for those that this one lacks.
        """

        def work(rows: torch.Tensor) -> LossTerms | None:
            if not len(rows):
                return self.keep_up(condition_BMD[:1]) if self.policy.forwards_together else None
            terms = self.loss(transitions[rows], condition_BMD, advantage_N[rows], weight_N[rows])
            (terms.loss_N.sum() / total).backward()
            return LossTerms(**{name: value.detach().cpu() for name, value in vars(terms).items()})

        batches = -(-len(transitions) // self.update_batch)
        for index in range(int(self.ranks.max(torch.tensor(batches)))):
            rows = torch.arange(len(transitions))[index * self.update_batch :][: self.update_batch]
            yield once(f"{name}{index}", partial(work, rows))

    def keep_up(self, condition_BMD: torch.Tensor) -> None:
        """Takes part in a micro-batch of other ranks, of which this one has fewer, and adds nothing to the gradient."""
        x, timestep = torch.zeros(1, *self.policy.latent_shape).to(condition_BMD.device), self.schedule.timestep_T[:1]
        velocity = self.policy.velocity(x, timestep, condition_BMD)
        if self.method.kl_weight:
            self.policy.base_velocity(x, timestep, condition_BMD)
        (0 * velocity.sum()).backward()

    def loss(
        self, taken: Transitions, condition_BMD: torch.Tensor, advantage_N: torch.Tensor, weight_N: torch.Tensor
    ) -> LossTerms:
        """Replays the transitions' SDE steps under the present policy, on its device."""
        x = taken.x_NCFHW.to(condition_BMD.device)
        sigma, std, dt = (
            value[taken.step_N].to(x) for value in (self.schedule.sigma_S, self.schedule.std_T, self.schedule.dt_T)
        )
        timestep_N, condition = self.schedule.timestep_T[taken.step_N], condition_BMD[taken.rollout_N]
        mean = sde_mean(x, self.policy.velocity(x, timestep_N, condition), sigma, std, dt)
        forwards = len(taken) * self.policy.evaluations_per_velocity
        self.meter.count(forwards=forwards, backwards=forwards)
        base_kl_N = None
        if self.method.kl_weight:
            base_mean = sde_mean(x, self.policy.base_velocity(x, timestep_N, condition), sigma, std, dt)
            base_kl_N = gaussian_kl(mean, base_mean, sde_noise_std(std, dt))
            self.meter.count(forwards=forwards)
        return clipped_surrogate(
            log_prob(taken.x_next_NCFHW.to(x), mean, std, dt),
            taken.logp_old_N.to(x),
            advantage_N.to(x),
            weight_N.to(x),
            self.method.ratio_clip,
            base_kl_N,
            self.method.kl_weight,
        )

    def apply_gradients(self) -> float:
        """Sums gradients over ranks, clips, steps, averages into the EMA; returns the norm before clipping."""
        parameters = list(self.policy.trainable().values())
        if self.ranks.world_size > 1:
            for parameter in parameters:
                mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.ranks.sum(mine)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm, error_if_nonfinite=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        self.ema.update(self.optimizer_steps)
        return float(norm)

    def over_ranks(self, batch: PromptBatch, value_B: torch.Tensor) -> torch.Tensor:
        """All ranks' values as a matrix [P, G], the same on every rank."""
        value_PG = torch.zeros(batch.num_prompts, batch.group_size)
        value_PG[batch.prompt_B, batch.sibling_B] = value_B.cpu()
        return self.ranks.sum(value_PG)

    def _record(
        self, iteration: int, batch: PromptBatch, scores: Scores, reward_PG: torch.Tensor, trained: Trained
    ) -> IterationRecord:
        step_T = self.ranks.sum(torch.bincount(trained.step_N, minlength=len(self.schedule)).double())
        total = int(step_T.sum())

        def mean(value_N: torch.Tensor) -> float:
            return float(self.ranks.sum(value_N.double().sum())) / max(total, 1)

        def largest(value_N: torch.Tensor) -> float:
            return float(self.ranks.max(value_N.max() if len(value_N) else torch.tensor(-torch.inf)))

        def joint(name: str) -> torch.Tensor:
            return torch.cat([torch.empty(0), *(getattr(term, name).float() for term in trained.terms)])

        spread_P = reward_PG.std(1, correction=0)
        ratio_N = joint("ratio_N")
        seconds = self.meter.settle()
        return IterationRecord(
            iteration=iteration,
            optimizer_steps=self.optimizer_steps,
            cost=self.meter.cost,
            evaluation_seconds=self.meter.evaluation_seconds,
            seconds={phase: seconds[phase] for phase in ("rollout", "reward", "update")},
            reward_mean=float(reward_PG.mean()),
            reward_std=float(reward_PG.std(correction=0)),
            reward_parts={name: float(self.over_ranks(batch, part).mean()) for name, part in scores.parts.items()},
            within_group_std=float(spread_P.mean()),
            groups_without_spread=float((spread_P == 0).double().mean()),
            transitions=total,
            steps=(step_T / max(total, 1)).tolist(),
            weight_min=-largest(-trained.weight_N),
            weight_max=largest(trained.weight_N),
            advantage_abs_mean=mean(trained.advantage_N.abs()),
            ratio_mean=mean(ratio_N),
            ratio_max=largest(ratio_N),
            ratio_drift=largest((trained.first_ratio_N - 1).abs()),
            clip_fraction=mean(joint("clipped_N")),
            approx_kl=mean(joint("approx_kl_N")),
            base_kl=mean(joint("base_kl_N")),
            loss=mean(joint("loss_N")),
            gradient_norm=sum(trained.gradient_norms) / len(trained.gradient_norms),
            lr=self.optimizer.param_groups[0]["lr"],
        )


def refuse_drift(record: IterationRecord, ratio_clip: float) -> None:
    if record.transitions and record.ratio_drift > ratio_clip:
        raise DriftError(
            f"iteration {record.iteration}: ratio_drift={record.ratio_drift:.2e} exceeds method.ratio_clip={ratio_clip}: "
            "replayed steps differ from their rollouts before any update, and clipping decides what is trained. Make both "
            "compute alike (rollout.batch equal to training.batch, model.compile=false, another model.attention), compute "
            "in model.dtype=float32, or raise method.ratio_clip"
        )


def _refuse_unusable(reward_PG: torch.Tensor, text_P: list[str], iteration: int) -> None:
    bad = (~reward_PG.isfinite()).nonzero()
    if len(bad):
        prompt, sibling = bad[0].tolist()
        raise RewardError(
            f"iteration {iteration}: the reward of {text_P[prompt]!r} (prompt {prompt}, sibling {sibling}) is "
            f"{float(reward_PG[prompt, sibling])}; {len(bad)} of {reward_PG.numel()} rewards are not finite"
        )
