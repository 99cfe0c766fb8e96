"""Train on an iteration's transitions: replay them, weigh them, step the optimizer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.denoise import replayed, sde_step_mean
from flash_grpo.algorithm.loss import clipped_surrogate, gaussian_kl
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.types import FlowSchedule, LossTerms, Rollouts, Trained, Transitions, joined_trained
from flash_grpo.algorithm.weighting import rescaled_to_mean_one
from flash_grpo.records.schema import IterationRecord
from flash_grpo.training.anneal import Anneal
from flash_grpo.training.ema import EMA
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks


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
    anneal: Anneal = field(default_factory=Anneal)
    optimizer_steps: int = 0

    def __post_init__(self) -> None:
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def update(self, rollouts: Rollouts, advantage_PG: torch.Tensor) -> Trained:
        """Make the optimizer steps of every epoch, each on its share. Zero advantages are dropped (release)."""
        transitions, batch = rollouts.transitions, rollouts.batch
        advantage_N = advantage_PG[batch.prompt_B, batch.sibling_B][transitions.rollout_N]
        optimizer_step_N = batch.optimizer_step_B[transitions.rollout_N]
        parts = []
        for epoch, index in product(range(self.layout.epochs), range(self.layout.optimizer_steps)):
            rows = ((optimizer_step_N == index) & (advantage_N != 0)).nonzero().flatten()
            name = f"epoch {epoch} step {index}"
            step = partial(self._step, transitions.chosen(rows), rollouts.condition_BMD, advantage_N[rows], name)
            parts.append(self.journal.resumable(name, step))
        return joined_trained(parts)

    def _step(
        self, transitions: Transitions, condition_BMD: torch.Tensor, advantage_N: torch.Tensor, name: str
    ) -> Trained:
        """Make one optimizer step on this rank's transitions and those of all others; `name`: in the journal."""
        total = int(self.ranks.sum(torch.tensor(len(transitions))))
        weight_N = weights(self.method.weigh(self.schedule), self.method.rescale, transitions.step_N, total, self.ranks)
        with self.journal.section(partial(self._keep_up, condition_BMD[:1])):
            terms = list(self.backward(transitions, condition_BMD, advantage_N, weight_N, total, f"{name}/"))
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

    def backward(
        self,
        transitions: Transitions,
        condition_BMD: torch.Tensor,
        advantage_N: torch.Tensor,
        weight_N: torch.Tensor,
        total: int,
        name: str,
    ) -> Iterator[LossTerms]:
        """Add this rank's share of the gradient of the mean loss over `total` transitions, `at_once` states at a time.

        name: begins the name of each piece in the journal.
        """

        def work(rows: torch.Tensor) -> LossTerms:
            terms = self.loss(transitions.chosen(rows), condition_BMD, advantage_N[rows], weight_N[rows])
            (terms.loss_N.sum() / total).backward()
            return LossTerms(**{key: value.detach().cpu() for key, value in vars(terms).items()})

        states = len(transitions.x_SCFHW)
        for index, first in enumerate(range(0, states, self.at_once)):
            if f"{name}{index}" not in self.journal.done:
                self.journal.leave_if_asked()
            rows = transitions.rows_of(range(first, min(first + self.at_once, states)))
            yield self.journal.resumable(f"{name}{index}", partial(work, rows))

    def _keep_up(self, condition_BMD: torch.Tensor) -> None:
        """Take part in a micro-batch of other ranks, and add nothing to the gradient."""
        x, timestep = torch.zeros(1, *self.policy.latent_shape).to(condition_BMD.device), self.schedule.timestep_T[:1]
        velocity = self.policy.velocity(x, timestep, condition_BMD)
        if self.method.kl_weight:
            self.policy.base_velocity(x, timestep, condition_BMD)
        (0 * velocity.sum()).backward()

    def loss(
        self, taken: Transitions, condition_BMD: torch.Tensor, advantage_N: torch.Tensor, weight_N: torch.Tensor
    ) -> LossTerms:
        """Replay the SDE steps under the present policy, on its device: one velocity for each distinct state."""
        x, condition = taken.x_SCFHW.to(condition_BMD.device), condition_BMD[taken.rollout_S]
        timestep_S, forwards = self.schedule.timestep_T[taken.step_S], len(x) * self.policy.evaluations_per_velocity
        logp_N, mean, noise_std_S = replayed(self.policy.velocity(x, timestep_S, condition), taken, self.schedule)
        self.meter.count(forwards=forwards, backwards=forwards)
        base_kl_N = None
        if self.method.kl_weight:
            base_velocity = self.policy.base_velocity(x, timestep_S, condition)
            base_mean = sde_step_mean(x, base_velocity, self.schedule, taken.step_S)
            base_kl_N = gaussian_kl(mean, base_mean, noise_std_S)[taken.state_N.to(x.device)]
            self.meter.count(forwards=forwards)
        return clipped_surrogate(
            logp_N,
            taken.logp_old_N.to(x),
            advantage_N.to(x),
            weight_N.to(x),
            self.method.ratio_clip,
            base_kl_N,
            self.method.kl_weight,
        )

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


def refuse_drift(record: IterationRecord, ratio_clip: float) -> None:
    """Raise DriftError where ratios differ from 1 before any update by more than the clip range."""
    if record.transitions and record.ratio_drift > ratio_clip:
        raise DriftError(
            f"iteration {record.iteration}: before any update, log-prob ratios already differ from 1 by up to "
            f"{record.ratio_drift:.2e}, more than method.ratio_clip={ratio_clip}. Rollout and update compute the same step "
            "differently, and clipping would train that rounding. Try, in this order: rollout.batch equal to "
            "training.batch; model.compile=false; another model.attention; model.dtype=float32; a larger method.ratio_clip"
        )
