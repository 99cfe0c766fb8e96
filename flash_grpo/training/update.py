"""Train on an iteration's rollouts: replay their trained steps, weigh them, step the optimizer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.types import LossTerms, Rollouts, Trained, joined_trained
from flash_grpo.algorithm.weighting import rescaled_to_mean_one
from flash_grpo.records.schema import IterationRecord
from flash_grpo.training.journal import Journal, Result
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.replay import Replayer
from flash_grpo.training.stepper import Stepper
from flash_grpo.training.steps import Steps, trained_steps


class DriftError(RuntimeError):
    """Rollout and replay disagree by more than the clip range: training would follow rounding, not the reward."""


@dataclass(kw_only=True)
class Updater:
    """Lays an iteration's trained steps out over optimizer steps, and these over micro-batches that the journal holds.

    at_once: states per backward; bounds memory and does not change results. train_fraction: of each group's rollouts, see
    `trained_steps`.
    """

    replayer: Replayer
    stepper: Stepper
    layout: Layout
    ranks: Ranks
    journal: Journal
    at_once: int
    seed: int
    train_fraction: float = 1.0

    def update(self, rollouts: Rollouts, advantage_PG: torch.Tensor) -> Trained:
        """Make the optimizer steps of every epoch, each on its share. Steps without an advantage are dropped (release)."""
        steps, condition_BMD, replayer = self.steps(rollouts, advantage_PG), rollouts.condition_BMD, self.replayer
        several = self.layout.epochs * self.layout.optimizer_steps > 1
        if several and replayer.method.needs.old_velocities(replayer.off_policy):
            steps = self._with_old_velocities(steps, condition_BMD)
        optimizer_step_N = rollouts.batch.optimizer_step_B[steps.taken.rollout_N]
        parts = []
        for epoch, index in product(range(self.layout.epochs), range(self.layout.optimizer_steps)):
            mine = steps.chosen(((optimizer_step_N == index) & steps.trained_N).nonzero().flatten())
            name = f"epoch {epoch} step {index}"
            parts.append(self.journal.resumable(name, partial(self._step, mine, condition_BMD, name)))
        return joined_trained(parts)

    def steps(self, rollouts: Rollouts, advantage_PG: torch.Tensor) -> Steps:
        """Return the trained steps of this rank's rollouts, see `trained_steps`."""
        method, num_steps = self.replayer.method, len(self.replayer.schedule)
        return trained_steps(method, rollouts, advantage_PG, num_steps, self.seed, self.ranks, self.train_fraction)

    def _with_old_velocities(self, steps: Steps, condition_BMD: torch.Tensor) -> Steps:
        """Return the steps with their velocities before the first optimizer step."""
        old_N = torch.zeros_like(steps.taken.x_SCFHW)[steps.taken.state_N]
        trained = steps.trained_N.nonzero().flatten()
        mine = steps.chosen(trained)

        def work(rows: torch.Tensor) -> torch.Tensor:
            return self.replayer.old_velocities(mine.chosen(rows), condition_BMD)

        with self.journal.section(partial(self.replayer.keep_up_with_old, condition_BMD)):
            for rows, velocities in self._micro_batches(mine, "old/", work):
                old_N[trained[rows]] = velocities
        return replace(steps, old_NCFHW=old_N)

    def _step(self, steps: Steps, condition_BMD: torch.Tensor, name: str) -> Trained:
        """Make one optimizer step on this rank's trained steps and those of all others; `name`: in the journal."""
        method, step_N = self.replayer.method, steps.taken.step_N
        trained_E = self.ranks.sum(self._by_expert(step_N))
        total = int(trained_E.sum())
        weight_N = weights(method.weigh(self.replayer.schedule), method.rescale, step_N, total, self.ranks)
        with self.journal.section(partial(self.replayer.keep_up, condition_BMD)):
            terms = list(self.backward(steps, condition_BMD, weight_N, total, f"{name}/"))
        gradient_norm, expert_norms = self.stepper.apply_gradients(trained_E) if total else (0.0, {})
        ratio_N = torch.cat([term.ratio_N for term in terms]) if terms else torch.ones(0)
        return Trained(
            terms=terms,
            weight_N=weight_N,
            advantage_N=steps.advantage_N,
            step_N=step_N,
            gradient_norms=[gradient_norm],
            first_ratio_N=ratio_N,
            expert_norms=(expert_norms,),
        )

    def backward(
        self, steps: Steps, condition_BMD: torch.Tensor, weight_N: torch.Tensor, total: int, name: str
    ) -> Iterator[LossTerms]:
        """Add this rank's share of the gradient of the mean loss over `total` steps, `at_once` states at a time.

        name: begins the name of each micro-batch in the journal.
        """

        def work(rows: torch.Tensor) -> LossTerms:
            terms = self.replayer.loss(steps.chosen(rows), condition_BMD, weight_N[rows])
            (terms.loss_N.sum() / total).backward()
            return LossTerms(**{key: value.detach().cpu() for key, value in vars(terms).items()})

        for _, terms in self._micro_batches(steps, name, work):
            yield terms

    def _micro_batches(
        self, steps: Steps, name: str, work: Callable[[torch.Tensor], Result]
    ) -> Iterator[tuple[torch.Tensor, Result]]:
        """Do the work for `at_once` states of one expert at a time; yield the rows of each micro-batch and its result."""
        timestep_S, experts = self.replayer.schedule.timestep_T[steps.taken.step_S], self.replayer.experts
        for index, states in enumerate(experts.rows(timestep_S, self.at_once)):
            if f"{name}{index}" not in self.journal.done:
                self.journal.leave_if_asked(int(experts.of(timestep_S[states[0]])))
            rows = steps.taken.rows_of(states)
            yield rows, self.journal.resumable(f"{name}{index}", partial(work, rows))

    def _by_expert(self, step_N: torch.Tensor) -> torch.Tensor:
        """Return how many of these steps each expert computes [E]."""
        experts = self.replayer.experts
        return torch.bincount(experts.of(self.replayer.schedule.timestep_T[step_N]), minlength=len(experts))


def weights(weight_T: torch.Tensor, rescale: bool, step_N: torch.Tensor, total: int, ranks: Ranks) -> torch.Tensor:
    """Return each transition's weight by its step, rescaled over the optimizer step's `total` transitions of all ranks."""
    weight_N = weight_T[step_N]
    if not rescale or not total:
        return weight_N
    mean = float(ranks.sum(weight_N.double().sum())) / total
    return rescaled_to_mean_one(weight_N, mean, varies=bool((weight_T != weight_T[0]).any()))


def refuse_drift(record: IterationRecord, ratio_clip: float | None) -> None:
    """Raise DriftError where ratios differ from 1 before any update by more than the clip range."""
    if record.transitions and ratio_clip is not None and record.ratio_drift > ratio_clip:
        raise DriftError(
            f"iteration {record.iteration}: before any update, log-prob ratios already differ from 1 by up to "
            f"{record.ratio_drift:.2e}, more than method.ratio_clip={ratio_clip}. Rollout and update compute the same step "
            "differently, and clipping would train that rounding. Try, in this order: rollout.batch equal to "
            "training.batch; model.compile=false; another model.attention; model.dtype=float32; a larger method.ratio_clip"
        )
