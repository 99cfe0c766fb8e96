"""Train on an iteration's rollouts: replay their trained steps, weigh them, step the optimizer."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import torch

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.loss import gaussian_kl, with_kl
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.targets import Replay, predicted
from flash_grpo.algorithm.types import FlowSchedule, LossTerms, Rollouts, Trained, joined_trained
from flash_grpo.algorithm.weighting import rescaled_to_mean_one
from flash_grpo.records.schema import IterationRecord
from flash_grpo.training.anneal import Anneal
from flash_grpo.training.ema import EMA
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.steps import Steps, trained_steps


class DriftError(RuntimeError):
    """Rollout and replay disagree by more than the clip range: training would follow rounding, not the reward."""


@dataclass(kw_only=True)
class Updater:
    """Makes an iteration's optimizer steps. at_once: states per backward; bounds memory and does not change results."""

    policy: Policy
    method: Method
    schedule: FlowSchedule
    layout: Layout
    optimizer: torch.optim.Optimizer
    ema: EMA
    ranks: Ranks
    meter: Meter
    journal: Journal
    max_gradient_norm: float
    at_once: int
    seed: int
    anneal: Anneal = field(default_factory=Anneal)
    optimizer_steps: int = 0

    def __post_init__(self) -> None:
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def update(self, rollouts: Rollouts, advantage_PG: torch.Tensor) -> Trained:
        """Make the optimizer steps of every epoch, each on its share. Steps without an advantage are dropped (release)."""
        steps, condition_BMD = self.steps(rollouts, advantage_PG), rollouts.condition_BMD
        if self.method.needs.old_velocity and self.layout.epochs * self.layout.optimizer_steps > 1:
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
        return trained_steps(self.method, rollouts, advantage_PG, len(self.schedule), self.seed, self.ranks)

    @torch.no_grad()
    def _with_old_velocities(self, steps: Steps, condition_BMD: torch.Tensor) -> Steps:
        """Return the steps with their velocities before the first optimizer step, `at_once` at a time."""

        def work(mine: Steps) -> torch.Tensor:
            return self._velocity(mine, condition_BMD)[2][mine.taken.state_N].cpu()

        old_N = torch.zeros_like(steps.taken.x_SCFHW)[steps.taken.state_N]

        def keep_up() -> None:
            self._any_velocity(condition_BMD)

        with self.journal.section(keep_up):
            for index, rows in enumerate(steps.trained_N.nonzero().flatten().split(self.at_once)):
                if f"old/{index}" not in self.journal.done:
                    self.journal.leave_if_asked()
                old_N[rows] = self.journal.resumable(f"old/{index}", partial(work, steps.chosen(rows)))
        return replace(steps, old_NCFHW=old_N)

    def _step(self, steps: Steps, condition_BMD: torch.Tensor, name: str) -> Trained:
        """Make one optimizer step on this rank's trained steps and those of all others; `name`: in the journal."""
        total, step_N = int(self.ranks.sum(torch.tensor(len(steps)))), steps.taken.step_N
        weight_N = weights(self.method.weigh(self.schedule), self.method.rescale, step_N, total, self.ranks)
        with self.journal.section(partial(self._keep_up, condition_BMD)):
            terms = list(self.backward(steps, condition_BMD, weight_N, total, f"{name}/"))
        gradient_norm = self.apply_gradients() if total else 0.0
        ratio_N = torch.cat([term.ratio_N for term in terms]) if terms else torch.ones(0)
        return Trained(
            terms=terms,
            weight_N=weight_N,
            advantage_N=steps.advantage_N,
            step_N=step_N,
            gradient_norms=[gradient_norm],
            first_ratio_N=ratio_N,
        )

    def backward(
        self, steps: Steps, condition_BMD: torch.Tensor, weight_N: torch.Tensor, total: int, name: str
    ) -> Iterator[LossTerms]:
        """Add this rank's share of the gradient of the mean loss over `total` steps, `at_once` states at a time.

        name: begins the name of each piece in the journal.
        """

        def work(rows: torch.Tensor) -> LossTerms:
            terms = self.loss(steps.chosen(rows), condition_BMD, weight_N[rows])
            (terms.loss_N.sum() / total).backward()
            return LossTerms(**{key: value.detach().cpu() for key, value in vars(terms).items()})

        states = len(steps.taken.x_SCFHW)
        for index, first in enumerate(range(0, states, self.at_once)):
            if f"{name}{index}" not in self.journal.done:
                self.journal.leave_if_asked()
            rows = steps.taken.rows_of(range(first, min(first + self.at_once, states)))
            yield self.journal.resumable(f"{name}{index}", partial(work, rows))

    def _keep_up(self, condition_BMD: torch.Tensor) -> None:
        """Take part in a micro-batch of other ranks, and add nothing to the gradient."""
        velocity = self._any_velocity(condition_BMD)
        if self.method.kl_weight:
            self._any_velocity(condition_BMD, base=True)
        (0 * velocity.sum()).backward()

    def _any_velocity(self, condition_BMD: torch.Tensor, base: bool = False) -> torch.Tensor:
        x, timestep = torch.zeros(1, *self.policy.latent_shape).to(condition_BMD.device), self.schedule.timestep_T[:1]
        return (self.policy.base_velocity if base else self.policy.velocity)(x, timestep, condition_BMD[:1])

    def loss(self, steps: Steps, condition_BMD: torch.Tensor, weight_N: torch.Tensor) -> LossTerms:
        """Replay the steps under the present policy, on its device: one velocity for each distinct state."""
        x, straight, v = self._velocity(steps, condition_BMD)
        self.meter.count(backwards=len(x) * self.policy.evaluations_per_velocity)
        taken, step_S, state_N = steps.taken, steps.taken.step_S, steps.taken.state_N.to(x.device)
        prediction, scale_S = predicted(self.method.needs, x, v, self.schedule, step_S)
        siblings, old_N = steps.siblings(), steps.old_NCFHW
        at = Replay(
            taken=taken,
            schedule=self.schedule,
            advantage_N=steps.advantage_N.to(x),
            weight_N=weight_N.to(x),
            ratio_clip=self.method.ratio_clip,
            x_NCFHW=x[state_N],
            straight_NCFHW=straight,
            old_NCFHW=v.detach()[state_N] if old_N is None else old_N.to(x),
            siblings_NGCFHW=None if siblings is None else siblings.to(x),
            advantage_NG=steps.advantage_PG[steps.prompt_N].to(x),
        )
        terms = self.method.target(prediction[state_N], at)
        if not self.method.kl_weight:
            return terms
        base_v = self.policy.base_velocity(x, self.schedule.timestep_T[step_S], condition_BMD[taken.rollout_S])
        self.meter.count(forwards=len(x) * self.policy.evaluations_per_velocity)
        base, _ = predicted(self.method.needs, x, base_v, self.schedule, step_S)
        return with_kl(terms, gaussian_kl(prediction, base, scale_S)[state_N], self.method.kl_weight)

    def _velocity(
        self, steps: Steps, condition_BMD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Return the states, the straight velocity through them if they are noised x_0, and the policy's velocity [S, ...]."""
        taken, straight = steps.taken, None
        x = taken.x_SCFHW.to(condition_BMD.device)
        if self.method.needs.where == "x_0":
            x, straight = (value.to(x) for value in steps.noised(self.schedule))
        timestep_S, condition = self.schedule.timestep_T[taken.step_S], condition_BMD[taken.rollout_S]
        v = self.policy.velocity(x, timestep_S, condition)
        self.meter.count(forwards=len(x) * self.policy.evaluations_per_velocity)
        return x, straight, v

    def apply_gradients(self) -> float:
        """Sum gradients over ranks, clip, step, average into the EMA; return the norm before clipping."""
        parameters = list(self.policy.trainable().values())
        if self.ranks.world_size > 1:
            for parameter in parameters:
                mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.ranks.sum(mine)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm, error_if_nonfinite=True)
        self._set_rates()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        self.ema.update(self.optimizer_steps)
        return float(norm)

    def _set_rates(self) -> None:
        """Set the learning rates by what the run had spent when the iteration began."""
        factor = self.anneal.factor(self.meter.cost.pflop)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor


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
