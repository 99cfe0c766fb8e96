"""What each target regresses the velocity on: identities, and a gradient of zero where rewards know nothing of the videos."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from flash_grpo.algorithm import targets
from flash_grpo.algorithm.advantage import group_relative
from flash_grpo.algorithm.denoise import replayed
from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.algorithm.sde import ode_step
from flash_grpo.algorithm.targets import Replay, needs_of, predicted
from flash_grpo.algorithm.types import Transitions

G, SHAPE, D = 4, (2, 3, 1, 2), 12
SCHEDULE = flow_schedule(8)
TARGETS = {
    "sde_logprob": targets.sde_logprob,
    "finite_difference": targets.finite_difference,
    "neighbour": targets.neighbour,
    "forward_matching": targets.forward_matching,
    "implicit_pair": targets.implicit_pair,
}


def _doubles(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _replay(advantage_G, seed=0, step=3, **more):
    """One group whose siblings are trained at one step; the SDE's step has been taken by a velocity that `v_old` is."""
    x, v_old, x_0, noise = (_doubles(4 * seed + index, G, *SHAPE) for index in range(4))
    step_N, rows = torch.full((G,), step), torch.arange(G)
    mean, _ = predicted(needs_of(targets.sde_logprob), x, v_old, SCHEDULE, step_N)
    taken = Transitions(
        rollout_N=rows,
        step_N=step_N,
        state_N=rows,
        x_SCFHW=x,
        x_next_NCFHW=mean + float(SCHEDULE.noise_std_T[step]) * noise,
        logp_old_N=torch.zeros(G, dtype=torch.float64),
    )
    at = Replay(
        taken=replace(taken, logp_old_N=replayed(mean, taken, SCHEDULE)),
        schedule=SCHEDULE,
        advantage_N=advantage_G,
        weight_N=torch.ones(G, dtype=torch.float64),
        ratio_clip=None,
        x_NCFHW=x,
        straight_NCFHW=noise - x_0,
        old_NCFHW=v_old,
        siblings_NGCFHW=x_0.expand(G, *x_0.shape),
        advantage_NG=advantage_G.expand(G, G),
    )
    return v_old, replace(at, **more)


def _neighbours(v_old, at):
    """The same, with the siblings' next Euler states in place of their x_0."""
    x_next = ode_step(at.x_NCFHW, v_old, SCHEDULE.dt_T[at.taken.step_N].double())
    taken = replace(at.taken, x_next_NCFHW=x_next)
    return replace(at, taken=taken, siblings_NGCFHW=x_next.expand(G, *x_next.shape)), x_next


def _gradient(target, v, at):
    """Return ∂(sum of losses)/∂v before any update."""
    v = v.clone().requires_grad_()
    prediction, _ = predicted(needs_of(target), at.x_NCFHW, v, SCHEDULE, at.taken.step_N)
    terms = target(prediction, at)
    assert (terms.ratio_N - 1).abs().max() < 1e-10
    terms.loss_N.sum().backward()
    return v.grad


def test_the_direction_of_a_linear_reward_is_the_covariance_times_its_gradient():
    """With raw centred advantages: Ĉg/(tr Ĉ/D)."""
    x_0, g = _doubles(1, 16, *SHAPE), _doubles(2, *SHAPE).flatten()
    reward = x_0.flatten(1) @ g
    centred = x_0.flatten(1) - x_0.flatten(1).mean(0)
    covariance = centred.T @ centred / 16
    expected = covariance @ g / (covariance.trace() / D)
    advantage = group_relative(reward[None], std="none", clip=None)
    made = targets.direction(x_0[None], advantage).flatten()
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-10)


def test_the_direction_of_siblings_that_are_all_equal_is_zero():
    assert not targets.direction(torch.ones(1, G, *SHAPE), torch.tensor([[1.0, -1.0, 0.5, -0.5]])).any()


def test_finite_difference_moves_every_sibling_along_the_same_direction():
    advantage = _doubles(5, G)
    v, at = _replay(advantage)
    d = targets.direction(at.siblings_NGCFHW[:1], advantage[None])
    torch.testing.assert_close(_gradient(targets.finite_difference, v, at), d.expand(G, *SHAPE) / D)


def test_forward_matching_pulls_towards_the_straight_velocity_by_the_advantage():
    advantage = _doubles(5, G)
    v, at = _replay(advantage)
    expected = 2 * advantage.reshape(-1, 1, 1, 1, 1) * (v - at.straight_NCFHW) / D
    torch.testing.assert_close(_gradient(targets.forward_matching, v, at), expected, rtol=0, atol=1e-12)


def test_forward_matching_stops_pushing_away_only_at_the_clip():
    advantage = torch.full((G,), -1.0, dtype=torch.float64)
    v, at = _replay(advantage, ratio_clip=0.1)
    far = at.straight_NCFHW + 10 * (v - at.straight_NCFHW)

    def pushed(replay):
        moved = far.clone().requires_grad_()
        targets.forward_matching(moved, replay).loss_N.sum().backward()
        return moved.grad.abs().max()

    assert pushed(at) == 0
    assert pushed(replace(at, ratio_clip=None, old_NCFHW=far)) > 0


def test_the_implicit_pair_is_advantage_weighted_matching_before_any_update_and_bounded_below_after():
    advantage = _doubles(5, G).clamp(-1, 1)
    v, at = _replay(advantage)
    sigma = float(SCHEDULE.sigma_S[3])
    mean_abs = (sigma * (v - at.straight_NCFHW)).flatten(1).abs().mean(1).reshape(-1, 1, 1, 1, 1)
    expected = 2 * advantage.reshape(-1, 1, 1, 1, 1) * sigma**2 * (v - at.straight_NCFHW) / (D * mean_abs)
    for beta in (1.0, 0.1):
        made = _gradient(partial(targets.implicit_pair, beta=beta), v, at)
        torch.testing.assert_close(made, expected)
    assert targets.implicit_pair(1e3 * v, at).loss_N.min() >= 0


def test_a_neighbour_is_drawn_to_the_better_siblings_next_states():
    """With advantages that sum to zero: ∂loss/∂x = -2/(D·temperature) · mean(A_i x_i), at every sibling."""
    advantage = _doubles(5, G)
    advantage -= advantage.mean()
    v, at = _replay(advantage)
    at, x_next = _neighbours(v, at)
    pull = (advantage.reshape(-1, 1, 1, 1, 1) * x_next).mean(0)
    dt = float(SCHEDULE.dt_T[3])
    for temperature in (1.0, 0.05):
        made = _gradient(partial(targets.neighbour, temperature=temperature), v, at)
        torch.testing.assert_close(made, (-2 * dt / (D * temperature) * pull).expand(G, *SHAPE), rtol=1e-6, atol=1e-12)


def _errors(name, knowing):
    """Return the mean gradient of 12 parameters over 200 draws of a group, in standard errors.

    The field is v = x + bias. knowing: whether the reward is linear in what makes the videos, or drawn by itself.
    """
    target, bias, g, gradients = TARGETS[name], _doubles(0, D), _doubles(1, D), []
    for draw in range(200):
        v, at = _replay(torch.zeros(G, dtype=torch.float64), seed=draw)
        source = {"sde_logprob": at.taken.x_next_NCFHW, "neighbour": at.x_NCFHW}.get(name, at.siblings_NGCFHW[0])
        reward = source.flatten(1) @ g if knowing else _doubles(10_000 + draw, G)
        field = bias.clone().requires_grad_()
        v = at.x_NCFHW + field.reshape(SHAPE)
        at = replace(at, old_NCFHW=v.detach())
        if name == "neighbour":
            at, _ = _neighbours(v.detach(), at)
        prediction, _ = predicted(needs_of(target), at.x_NCFHW, v, SCHEDULE, at.taken.step_N)
        if name == "sde_logprob":
            noise = _doubles(4 * draw + 3, G, *SHAPE)
            reward = noise.flatten(1) @ g if knowing else reward
            x_next = prediction.detach() + float(SCHEDULE.noise_std_T[3]) * noise
            taken = replace(at.taken, x_next_NCFHW=x_next)
            at = replace(at, taken=replace(taken, logp_old_N=replayed(prediction.detach(), taken, SCHEDULE)))
        advantage = group_relative(reward[None], std="group")[0]
        at = replace(at, advantage_N=advantage, advantage_NG=advantage.expand(G, G))
        target(prediction, at).loss_N.mean().backward()
        gradients.append(field.grad)
    gradient = torch.stack(gradients)
    return gradient.mean(0) / (gradient.std(0) / len(gradient) ** 0.5)


@pytest.mark.parametrize("name", TARGETS)
def test_rewards_that_know_nothing_of_the_videos_have_a_mean_gradient_of_zero(name):
    """Within two standard errors, root mean square over 12 parameters; of rewards that know it is far outside."""
    assert _errors(name, knowing=False).square().mean().sqrt() < 2
    assert _errors(name, knowing=True).square().mean().sqrt() > 3
