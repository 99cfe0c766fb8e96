"""Denoise by a mask of trained steps, stochastic where the target needs it, deterministic elsewhere; and replay them.

The step taken (`_branched`) and the step replayed (`replayed`) stand side by side: before any update they give the same
log-probability, so the ratio is 1. That identity is what makes the policy gradient valid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.needs import TRANSITION, Needs
from flash_grpo.algorithm.noise import Key, NoiseKeys, initial_state
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.sde import log_prob, ode_step, sde_mean
from flash_grpo.algorithm.solvers import History, euler
from flash_grpo.algorithm.transitions import gathered, joined
from flash_grpo.algorithm.types import FlowSchedule, Transitions

Solver = Callable[[torch.Tensor, torch.Tensor, History | None, FlowSchedule, int], torch.Tensor]


class DivergedError(RuntimeError):
    """The policy makes no videos any more. Its decoder would hide it: what is not a number becomes a black pixel."""


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """B rollouts in the middle of their denoising, as S <= B distinct states."""

    step: int
    """The next step, 0..T; at T the states are the latents."""

    x_SCFHW: torch.Tensor
    state_B: torch.Tensor
    """The state of each rollout."""

    history: History | None
    kept: tuple[Transitions, ...]
    """The trained steps so far that the target needs, by step."""

    velocities: int
    """Velocities computed so far, one for each distinct state and step."""


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """What denoising gives: the latents, the trained steps by step and then by row, the velocities computed."""

    latent_BCFHW: torch.Tensor
    transitions: Transitions
    velocities: int


@torch.no_grad()
def denoise(
    policy: Policy,
    condition_BMD: torch.Tensor,
    keys: NoiseKeys,
    schedule: FlowSchedule,
    mask_BT: torch.Tensor,
    *,
    needs: Needs = TRANSITION,
    solve: Solver = euler,
    at_once: int | None = None,
    before_velocity: Callable[[torch.Tensor], None] = lambda timestep: None,
    after_step: Callable[[Denoising], None] = lambda denoising: None,
    resumed: Denoising | None = None,
) -> Denoised:
    """Go from noise to latents. Rollouts whose keys so far are equal are one state, which is computed once.

    mask_BT: which steps are trained. needs: of the target. at_once: states in one call of the policy; None is all.
    before_velocity: is given the timestep, and may raise to give up. after_step: is given the state of things, from which
    `resumed` goes on.
    DivergedError where the latents are not finite. A schedule that ends before sigma = 0 is ended by the last velocities.
    """
    now = resumed or _begun(policy, condition_BMD, keys)
    for step in range(now.step, len(schedule)):
        alone = len(now.x_SCFHW) == len(condition_BMD)  # each rollout a state of its own, in order
        condition_SMD = condition_BMD if alone else condition_BMD[_first_rows(now.state_B)]
        v = _velocities(policy, now.x_SCFHW, condition_SMD, schedule.timestep_T[step], at_once, before_velocity)
        now = _stepped(now, v, keys, schedule, mask_BT, needs, solve)
        after_step(now)
    now = _ended(now, schedule)
    if not now.x_SCFHW.isfinite().all():
        raise DivergedError(
            "the policy has diverged: latents are not finite; lower optim.optimizer.lr, model.guidance or schedule.noise_level"
        )
    return Denoised(
        latent_BCFHW=now.x_SCFHW[now.state_B],
        transitions=joined(now.kept, now.x_SCFHW),
        velocities=now.velocities,
    )


def _begun(policy: Policy, condition_BMD: torch.Tensor, keys: NoiseKeys) -> Denoising:
    """Draw each distinct x_T."""
    state_of = _numbered(keys.initial_B)
    state_B = torch.tensor([state_of[key] for key in keys.initial_B])
    drawn = [initial_state(policy.latent_shape, keys, row) for row in _first_rows(state_B).tolist()]
    x = torch.stack(drawn).to(condition_BMD.device)
    return Denoising(step=0, x_SCFHW=x, state_B=state_B, history=None, kept=(), velocities=0)


def _ended(now: Denoising, schedule: FlowSchedule) -> Denoising:
    """Go from where the schedule ends to sigma = 0 along the velocities that are there."""
    if not (left := schedule.sigma_S[-1]) or not now.history:
        return now
    return replace(now, x_SCFHW=ode_step(now.x_SCFHW, now.history.v_SCFHW, -left))


def _velocities(
    policy: Policy,
    x_SCFHW: torch.Tensor,
    condition_SMD: torch.Tensor,
    timestep: torch.Tensor,
    at_once: int | None,
    before_velocity: Callable[[torch.Tensor], None],
) -> torch.Tensor:
    if at_once is None or at_once >= len(x_SCFHW):
        before_velocity(timestep)
        return policy.velocity(x_SCFHW, timestep.expand(len(x_SCFHW)), condition_SMD)
    found = []
    for x, condition in zip(x_SCFHW.split(at_once), condition_SMD.split(at_once), strict=True):
        before_velocity(timestep)
        found.append(policy.velocity(x, timestep.expand(len(x)), condition))
    return torch.cat(found)


def _stepped(
    now: Denoising,
    v: torch.Tensor,
    keys: NoiseKeys,
    schedule: FlowSchedule,
    mask_BT: torch.Tensor,
    needs: Needs,
    solve: Solver,
) -> Denoising:
    """Take one step of all states; a rollout whose step is stochastic goes on in a state of its own."""
    mask_B, x_next = mask_BT[:, now.step], solve(now.x_SCFHW, v, now.history, schedule, now.step)
    history = History(v_SCFHW=v, known_S=torch.ones(len(v), dtype=torch.bool), x_SCFHW=now.x_SCFHW)
    after = replace(now, step=now.step + 1, x_SCFHW=x_next, history=history, velocities=now.velocities + len(v))
    if not mask_B.any() or needs.where == "x_0":
        return after
    if needs.stochastic:
        return _branched(now, after, v, keys, schedule, mask_BT)
    return replace(after, kept=(*now.kept, _passed(now, v, schedule, mask_B, x_next=needs.siblings == "x_next")))


def _passed(now: Denoising, v: torch.Tensor, schedule: FlowSchedule, mask_B: torch.Tensor, x_next: bool) -> Transitions:
    """Return the deterministic steps of the masked rollouts. x_next: keep where an Euler step leads, whatever the solver."""
    rows = mask_B.nonzero().flatten()
    used_U, state_N = now.state_B[rows].unique(return_inverse=True)
    x_U = now.x_SCFHW[used_U]
    euler_U = ode_step(x_U, v[used_U], schedule.dt_T[now.step])
    return Transitions(
        rollout_N=rows,
        step_N=torch.full_like(rows, now.step),
        state_N=state_N,
        x_SCFHW=x_U,
        x_next_NCFHW=euler_U[state_N] if x_next else x_U.new_empty(len(rows), 0),
        logp_old_N=x_U.new_zeros(len(rows)),
    )


def _branched(
    now: Denoising,
    after: Denoising,
    v: torch.Tensor,
    keys: NoiseKeys,
    schedule: FlowSchedule,
    sde_mask_BT: torch.Tensor,
) -> Denoising:
    """Take the SDE step of the rollouts that the mask names, and find the states that are distinct behind it."""
    sde_mask_B, taken_B = sde_mask_BT[:, now.step], sde_mask_BT[:, : now.step].sum(1).tolist()
    rows = sde_mask_B.nonzero().flatten()
    drawn = {row: keys.sde(row, taken_B[row], now.step) for row in rows.tolist()}
    used_U, state_N = now.state_B[rows].unique(return_inverse=True)
    x_U = gathered(now.x_SCFHW, used_U)
    mean_N = gathered(sde_step_mean(x_U, gathered(v, used_U), schedule, torch.tensor(now.step)), state_N)
    noise_std = schedule.noise_std_T[now.step]
    x_next_N = mean_N + noise_std * _noise(tuple(drawn.values()), tuple(v.shape[1:])).to(mean_N)
    taken = Transitions(
        rollout_N=rows,
        step_N=torch.full_like(rows, now.step),
        state_N=state_N,
        x_SCFHW=x_U,
        x_next_NCFHW=x_next_N,
        logp_old_N=log_prob(x_next_N, mean_N, noise_std),
    )
    behind_B: list[Key] = [(state, *drawn.get(row, ())) for row, state in enumerate(now.state_B.tolist())]
    state_of = _numbered(behind_B)
    state_B = torch.tensor([state_of[key] for key in behind_B])
    first_S = _first_rows(state_B)
    parent_S, stochastic_S = now.state_B[first_S], sde_mask_B[first_S]
    position_B = torch.zeros(len(state_B), dtype=torch.long).index_put((rows,), torch.arange(len(rows)))
    went_S = stochastic_S.to(v.device).reshape(-1, 1, 1, 1, 1)
    x_next_S, x_ode_S = gathered(x_next_N, position_B[first_S]), gathered(after.x_SCFHW, parent_S)
    return replace(
        after,
        x_SCFHW=torch.where(went_S, x_next_S, x_ode_S),
        state_B=state_B,
        history=after.history and after.history.of(parent_S, stochastic_S),
        kept=(*now.kept, taken),
    )


def _noise(key_N: tuple[Key, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """Return the noise of each key [N, ...]; of equal ones it is drawn once."""
    row_of = _numbered(key_N)
    drawn = keyed.normals(shape, list(row_of))
    return drawn if len(drawn) == len(key_N) else drawn[[row_of[key] for key in key_N]]


def replayed(mean_N: torch.Tensor, taken: Transitions, schedule: FlowSchedule) -> torch.Tensor:
    """Return the log-probabilities [N] of the SDE steps that were taken, on the device of `mean_N`.

    mean_N: the steps' mean under the present policy, see `sde_step_mean`.
    """
    noise_std_N = schedule.noise_std_T[taken.step_N].to(mean_N)
    return log_prob(taken.x_next_NCFHW.to(mean_N.device), mean_N, noise_std_N)


def sde_step_mean(x: torch.Tensor, v: torch.Tensor, schedule: FlowSchedule, step: torch.Tensor) -> torch.Tensor:
    """Return the mean of the SDE step at `step`, one for all states or one for each [S]."""
    values = (value[step].to(v) for value in (schedule.x_factor_T, schedule.v_factor_T, schedule.dt_T))
    return sde_mean(x, v, *values)


def _numbered(keys: tuple[Key, ...] | list[Key]) -> dict[Key, int]:
    """Number distinct keys in the order in which they first appear."""
    return {key: index for index, key in enumerate(dict.fromkeys(keys))}


def _first_rows(state_B: torch.Tensor) -> torch.Tensor:
    """Return the first rollout of each state [S]."""
    first: dict[int, int] = {}
    for row, state in enumerate(state_B.tolist()):
        first.setdefault(state, row)
    return torch.tensor([first[state] for state in range(len(first))])
