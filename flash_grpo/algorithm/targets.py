"""Say what a trained step's velocity is regressed on: the methods' third word, beside the mask and the weight.

A target is a function `(prediction_N, Replay) -> LossTerms` and a statement of what it `needs`. The plan's mask names the
steps that are trained; without an SDE they are deterministic steps, or only the sigmas to which finished latents are noised.

| setting       | sde_logprob | finite_difference | neighbour          | forward_matching   | implicit_pair   |
|---------------|-------------|-------------------|--------------------|--------------------|-----------------|
| trained at    | SDE steps   | ODE states        | ODE states         | x_0, noised        | x_0, noised     |
| plan          | any         | any               | one step a prompt  | any                | any             |
| initial_noise | any         | not shared        | not shared         | not shared         | not shared      |
| tree          | yes         | no                | no                 | no                 | no              |
| weigh         | any         | not of the SDE    | not of the SDE     | not of the SDE     | not of the SDE  |
| advantage     | of the step | of all siblings   | of all siblings    | of the step        | of the step     |
| train_fraction| any         | 1                 | 1                  | any                | any             |
| ratio_clip    | yes         | null              | yes                | it or kl_weight    | null            |
| kl_weight     | of the step | of the velocity   | of the velocity    | of the velocity    | of the velocity |

`Method` refuses what is not in the table. KL of the velocity: the mean square of its difference from the base's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.denoise import replayed, sde_step_mean
from flash_grpo.algorithm.loss import clipped_surrogate, without_ratio
from flash_grpo.algorithm.needs import TRANSITION, Needs
from flash_grpo.algorithm.sde import ode_step
from flash_grpo.algorithm.types import FlowSchedule, LossTerms, Transitions


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a target may look at, of N trained steps, on the policy's device. What it does not need is None."""

    taken: Transitions
    schedule: FlowSchedule
    advantage_N: torch.Tensor
    weight_N: torch.Tensor
    ratio_clip: float | None
    x_NCFHW: torch.Tensor
    """The states at which velocities are trained."""

    straight_NCFHW: torch.Tensor | None = None
    """The velocity of the straight path through a noised state: ε - x_0."""

    old_NCFHW: torch.Tensor | None = None
    """The velocity of the policy that made the rollouts."""

    siblings_NGCFHW: torch.Tensor | None = None
    """x_0 or x_next of all siblings, of whatever rank."""

    advantage_NG: torch.Tensor | None = None
    """Their advantages."""


Target = Callable[[torch.Tensor, Replay], LossTerms]


def needing(needs: Needs) -> Callable[[Target], Target]:
    """Return a decorator that states what a target needs."""

    def stated(target: Target) -> Target:
        target.needs = needs  # type: ignore[attr-defined]
        return target

    return stated


def needs_of(target: Any) -> Needs | None:
    """Return what a target, or a partial of one, needs; None if it does not say so."""
    return getattr(target.func if isinstance(target, partial) else target, "needs", None)


def predicted(
    needs: Needs, x_S: torch.Tensor, v_S: torch.Tensor, schedule: FlowSchedule, step_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a target and the KL compare, and the std with which `gaussian_kl` compares it: [S, ...], [S].

    They are the mean of the SDE step and its noise's std, or the velocity itself and sqrt(½): then the KL is a mean square.
    """
    if needs.stochastic:
        return sde_step_mean(x_S, v_S, schedule, step_S), schedule.noise_std_T[step_S].to(v_S)
    return v_S, torch.full((len(v_S),), 0.5**0.5).to(v_S)


def retaken(
    needs: Needs, taken: Transitions, x_N: torch.Tensor, v_N: torch.Tensor, schedule: FlowSchedule
) -> Transitions:
    """Return the steps with what another velocity v_N gives them: its log-probability, or where its Euler step leads.

    Rollouts may be made with another guidance than they are trained with. The policy that a ratio compares with is the one
    that trains, before the update.
    """
    if needs.stochastic:
        return replace(taken, logp_old_N=replayed(sde_step_mean(x_N, v_N, schedule, taken.step_N), taken, schedule))
    if needs.siblings == "x_next":
        return replace(taken, x_next_NCFHW=ode_step(x_N, v_N, schedule.dt_T[taken.step_N].to(v_N)))
    return taken


def tried(target: Target, schedule: FlowSchedule, step: int, ratio_clip: float | None) -> LossTerms:
    """Call a target on two made-up siblings at this step, so that it refuses its settings before a model is loaded."""
    x_N, two_N = torch.tensor([0.1, 0.4]).reshape(2, 1, 1, 1, 1), torch.arange(2)
    taken = Transitions(
        rollout_N=two_N,
        step_N=torch.full((2,), step),
        state_N=two_N,
        x_SCFHW=x_N,
        x_next_NCFHW=x_N + 0.1,
        logp_old_N=torch.zeros(2),
    )
    at = Replay(
        taken=taken,
        schedule=schedule,
        advantage_N=torch.tensor([1.0, -1.0]),
        weight_N=torch.ones(2),
        ratio_clip=ratio_clip,
        x_NCFHW=x_N,
        straight_NCFHW=x_N,
        old_NCFHW=x_N,
        siblings_NGCFHW=torch.stack([x_N, x_N]),
        advantage_NG=torch.tensor([[1.0, -1.0], [1.0, -1.0]]),
    )
    return target(x_N, at)


@needing(TRANSITION)
def sde_logprob(mean_N: torch.Tensor, at: Replay) -> LossTerms:
    """Train -A·log p(x_next given x) of the stochastic steps, by clipped ratios (Flow-GRPO, Flash-GRPO and most others)."""
    old_N = at.taken.logp_old_N.to(mean_N)
    return clipped_surrogate(replayed(mean_N, at.taken, at.schedule), old_N, at.advantage_N, at.weight_N, at.ratio_clip)


@needing(Needs(where="state", siblings="x_0"))
def finite_difference(v_N: torch.Tensor, at: Replay) -> LossTerms:
    """Train <v, d>/D: each sibling's velocity is moved against the group's `direction` d (FDFO, arXiv 2603.12893).

    The velocity points from data to noise, so this moves x_0 along d.
    """
    assert at.siblings_NGCFHW is not None and at.advantage_NG is not None
    d_N = direction(at.siblings_NGCFHW, at.advantage_NG)
    return without_ratio(at.weight_N * (v_N * d_N).flatten(1).mean(1))


def direction(x_0_NGCFHW: torch.Tensor, advantage_NG: torch.Tensor) -> torch.Tensor:
    """Return the group mean of A·(x_0 - mean), over the mean square of an element of (x_0 - mean): [N, C, F, H, W].

    With A = r - mean(r) and r = <g, x_0> it is Ĉg/(tr Ĉ/D), Ĉ the group's covariance.
    """
    centred = x_0_NGCFHW - x_0_NGCFHW.mean(1, keepdim=True)
    square_N = centred.square().flatten(1).mean(1).clamp_min(torch.finfo(centred.dtype).tiny)
    return (_over(advantage_NG, centred) * centred).mean(1) / _over(square_N, centred[:, 0])


@needing(Needs(where="state", siblings="x_next", ratio=True))
def neighbour(v_N: torch.Tensor, at: Replay, temperature: float = 1.0) -> LossTerms:
    """Train -A_i·log π(i), summed over siblings, by clipped ratios (Neighbor GRPO, arXiv 2511.16955).

    π(i) is the softmax over siblings of -|x_i - x|²/(D·temperature), where x is one Euler step from this sibling's state by
    the present policy, and x_i is that of sibling i by the rollouts' policy. The ratio that is reported is the farthest from 1.
    """
    ranges.number("method.target.temperature", temperature, above=0)
    assert at.siblings_NGCFHW is not None and at.advantage_NG is not None
    x_N = ode_step(at.x_NCFHW, v_N, at.schedule.dt_T[at.taken.step_N].to(v_N))
    new_NG, old_NG = (
        torch.log_softmax(-_distance(at.siblings_NGCFHW, x) / temperature, 1)
        for x in (x_N, at.taken.x_next_NCFHW.to(v_N))
    )
    terms = clipped_surrogate(new_NG, old_NG, at.advantage_NG, at.weight_N[:, None], at.ratio_clip)
    farthest_N1 = (terms.ratio_N - 1).abs().argmax(1, keepdim=True)
    return LossTerms(
        loss_N=terms.loss_N.mean(1),
        ratio_N=terms.ratio_N.gather(1, farthest_N1)[:, 0],
        clipped_N=terms.clipped_N.any(1),
        approx_kl_N=terms.approx_kl_N.mean(1),
        base_kl_N=terms.base_kl_N[:, 0],
    )


@needing(Needs(where="x_0", old_velocity=True, ratio=True, restraint=True))
def forward_matching(v_N: torch.Tensor, at: Replay) -> LossTerms:
    """Train A·|v - (ε - x_0)|²/D by the clipped ratio exp(old - new) (AWM, arXiv 2509.25050).

    Before any update ∂loss/∂v is 2A(v - ε + x_0)/D. With A < 0 nothing but a clip or a KL keeps v from leaving for ever.
    """
    assert at.straight_NCFHW is not None and at.old_NCFHW is not None
    new_N, old_N = (-(v - at.straight_NCFHW).square().flatten(1).mean(1) for v in (v_N, at.old_NCFHW))
    return clipped_surrogate(new_N, old_N, at.advantage_N, at.weight_N, at.ratio_clip)


@needing(Needs(where="x_0", old_velocity=True))
def implicit_pair(v_N: torch.Tensor, at: Replay, beta: float = 1.0, largest: float = 5.0) -> LossTerms:
    """Match x_0 by two velocities around the old one, v_old ± beta·(v - v_old), weighted r and 1 - r (DiffusionNFT).

    r is ½ + A/(2·largest), cut to 0..1. Each error is divided by its own mean absolute value, and the sum by beta, as in the
    paper's code (arXiv 2509.16117).
    """
    ranges.number("method.target.beta", beta, above=0)
    ranges.number("method.target.largest", largest, above=0)
    assert at.straight_NCFHW is not None and at.old_NCFHW is not None
    sigma_N = at.schedule.sigma_S[at.taken.step_N].to(v_N)
    positive_N, negative_N = (
        _normalised(_over(sigma_N, v_N) * (at.old_NCFHW + sign * (v_N - at.old_NCFHW) - at.straight_NCFHW))
        for sign in (beta, -beta)
    )
    r_N = (0.5 + at.advantage_N / (2 * largest)).clamp(0, 1)
    return without_ratio(at.weight_N * largest / beta * (r_N * positive_N + (1 - r_N) * negative_N))


def _normalised(error_N: torch.Tensor) -> torch.Tensor:
    """Return the mean square of each error over its mean absolute value, which gets no gradient: [N]."""
    flat_ND = error_N.flatten(1)
    return flat_ND.square().mean(1) / flat_ND.detach().abs().mean(1).clamp_min(1e-5)


def _distance(x_NGCFHW: torch.Tensor, x_NCFHW: torch.Tensor) -> torch.Tensor:
    """Return the mean square of an element of each sibling's difference from x: [N, G]."""
    return (x_NGCFHW - x_NCFHW[:, None]).square().flatten(2).mean(2)


def _over(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape `value` so that it multiplies `like` along its first axes."""
    return value.reshape(*value.shape, *[1] * (like.ndim - value.ndim))
