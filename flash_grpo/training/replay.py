"""Replay trained steps under the present policy: the loss of a micro-batch, and the velocities from before the update."""

from dataclasses import dataclass

import torch

from flash_grpo.algorithm.experts import Experts, experts_of
from flash_grpo.algorithm.loss import gaussian_kl, with_kl
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.targets import Replay, predicted, retaken
from flash_grpo.algorithm.transitions import gathered
from flash_grpo.algorithm.types import FlowSchedule, LossTerms
from flash_grpo.training.meter import Meter
from flash_grpo.training.steps import Steps


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What the policy makes of S states. straight: the velocity through x if it is a noised x_0, else None."""

    x_SCFHW: torch.Tensor
    straight_SCFHW: torch.Tensor | None
    v_SCFHW: torch.Tensor


@dataclass(kw_only=True)
class Replayer:
    """Computes the policy's velocities of trained steps, on its device, and their loss.

    off_policy: rollouts have another guidance than `policy`; ratios then compare with this policy before the update, see
    `targets.retaken`.
    """

    policy: Policy
    method: Method
    schedule: FlowSchedule
    meter: Meter
    off_policy: bool = False

    @property
    def experts(self) -> Experts:
        return experts_of(self.policy)

    def loss(self, steps: Steps, condition_BMD: torch.Tensor, weight_N: torch.Tensor) -> LossTerms:
        """Replay the steps: one velocity for each distinct state."""
        replayed = self._replayed(steps, condition_BMD)
        x, v, step_S = replayed.x_SCFHW, replayed.v_SCFHW, steps.taken.step_S
        self.meter.count(backwards=len(x) * self.policy.evaluations_per_velocity)
        state_N = steps.taken.state_N
        prediction, scale_S = predicted(self.method.needs, x, v, self.schedule, step_S)
        terms = self.method.target(gathered(prediction, state_N), self._at(steps, replayed, weight_N))
        if not self.method.kl_weight:
            return terms
        base_v = self.policy.base_velocity(x, *self._inputs(steps, condition_BMD))
        self.meter.count(forwards=len(x) * self.policy.evaluations_per_velocity)
        base, _ = predicted(self.method.needs, x, base_v, self.schedule, step_S)
        return with_kl(terms, gathered(gaussian_kl(prediction, base, scale_S), state_N), self.method.kl_weight)

    @torch.no_grad()
    def old_velocities(self, steps: Steps, condition_BMD: torch.Tensor) -> torch.Tensor:
        """Return the velocity of each step, on the CPU, without gradients [N, C, F, H, W]."""
        return self._replayed(steps, condition_BMD).v_SCFHW[steps.taken.state_N].cpu()

    def keep_up(self, condition_BMD: torch.Tensor, expert: int) -> None:
        """Take part in a micro-batch of other ranks, and add nothing to the gradient."""
        velocity = self._any_velocity(condition_BMD, expert)
        if self.method.kl_weight:
            self._any_velocity(condition_BMD, expert, base=True)
        (0 * velocity.sum()).backward()

    @torch.no_grad()
    def keep_up_with_old(self, condition_BMD: torch.Tensor, expert: int) -> None:
        """Take part in the `old_velocities` of other ranks."""
        self._any_velocity(condition_BMD, expert)

    def _replayed(self, steps: Steps, condition_BMD: torch.Tensor) -> Replayed:
        straight, x = None, steps.taken.x_SCFHW.to(condition_BMD.device)
        if self.method.needs.where == "x_0":
            x, straight = (value.to(x) for value in steps.noised(self.schedule))
        v = self.policy.velocity(x, *self._inputs(steps, condition_BMD))
        self.meter.count(forwards=len(x) * self.policy.evaluations_per_velocity)
        return Replayed(x_SCFHW=x, straight_SCFHW=straight, v_SCFHW=v)

    def _at(self, steps: Steps, replayed: Replayed, weight_N: torch.Tensor) -> Replay:
        """Return what the target needs besides its prediction."""
        taken, x, v = steps.taken, replayed.x_SCFHW, replayed.v_SCFHW
        x_N, siblings = gathered(x, taken.state_N), steps.siblings()
        old_N = gathered(v.detach(), taken.state_N) if steps.old_NCFHW is None else steps.old_NCFHW.to(x)
        if self.off_policy:
            taken = retaken(self.method.needs, taken, x_N, old_N, self.schedule)
        return Replay(
            taken=taken,
            schedule=self.schedule,
            advantage_N=steps.advantage_N.to(x),
            weight_N=weight_N.to(x),
            ratio_clip=self.method.ratio_clip,
            x_NCFHW=x_N,
            straight_NCFHW=replayed.straight_SCFHW,
            old_NCFHW=old_N,
            siblings_NGCFHW=None if siblings is None else siblings.to(x),
            advantage_NG=steps.advantage_PG[steps.prompt_N].to(x),
        )

    def _inputs(self, steps: Steps, condition_BMD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return timestep and condition of each state."""
        return self.schedule.timestep_T[steps.taken.step_S], condition_BMD[steps.taken.rollout_S]

    def _any_velocity(self, condition_BMD: torch.Tensor, expert: int, base: bool = False) -> torch.Tensor:
        x, timestep = torch.zeros(1, *self.policy.latent_shape).to(condition_BMD.device), self.experts.timestep(expert)
        return (self.policy.base_velocity if base else self.policy.velocity)(x, timestep, condition_BMD[:1])
