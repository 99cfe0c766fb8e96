"""Deterministic steps: against diffusers, against their orders, and forgetting what a stochastic step made useless."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.denoise import denoise
from flash_grpo.algorithm.noise import NoiseKeys
from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.algorithm.solvers import History, ab2, dpmpp_2m, euler

SHAPE = (2, 1, 3, 3)


def _velocity(x, timestep_B, condition=None):
    """A velocity field that bends, in x and in time."""
    time = timestep_B.float().reshape(-1, 1, 1, 1, 1) / 1000
    return torch.sin(2 * x) + (1 + time) * x - time**2


POLICY = SimpleNamespace(latent_shape=SHAPE, velocity=_velocity)


def _by_diffusers(steps, shift, x):
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift, solver_order=2
    )
    scheduler.set_timesteps(steps)
    for timestep, asked in zip(scheduler.timesteps, flow_schedule(steps, shift).timestep_T, strict=True):
        x = scheduler.step(_velocity(x, asked.expand(len(x))), timestep, x, return_dict=False)[0]
    return x, scheduler.sigmas


def _ode(steps, solve, shift=3.0, rows=2):
    keys = NoiseKeys(initial_B=tuple((0, "x", row) for row in range(rows)))
    schedule = flow_schedule(steps, shift)
    nothing_BT = torch.zeros(rows, steps, dtype=torch.bool)
    return denoise(POLICY, torch.zeros(rows, 1, 1), keys, schedule, nothing_BT, solve=solve).latent_BCFHW


@pytest.mark.parametrize("steps", [3, 8, 20, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_dpmpp_2m_is_diffusers_own_on_flow_sigmas(steps, shift):
    """The grid of the release is the one that diffusers makes of flow sigmas."""
    x = torch.stack([keyed.normal(SHAPE, 0, "x", row) for row in range(2)])
    expected, sigmas = _by_diffusers(steps, shift, x)
    torch.testing.assert_close(flow_schedule(steps, shift).sigma_S, sigmas)
    torch.testing.assert_close(_ode(steps, dpmpp_2m, shift), expected, atol=1e-5, rtol=1e-5)
    assert (_ode(steps, euler, shift) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("solve", [ab2, dpmpp_2m])
def test_a_solver_of_second_order_is_nearer_to_the_path_than_euler_and_gains_more_by_finer_grids(solve):
    """In a field that does not depend on the timestep, which is cut to an integer."""
    smooth = SimpleNamespace(latent_shape=SHAPE, velocity=lambda x, timestep_B, condition: torch.sin(2 * x) + x)
    keys = NoiseKeys(initial_B=((0, "x", 0),))

    def end(steps, solver):
        nothing_BT = torch.zeros(1, steps, dtype=torch.bool)
        schedule = flow_schedule(steps, 1.0)
        return denoise(smooth, torch.zeros(1, 1, 1), keys, schedule, nothing_BT, solve=solver).latent_BCFHW

    exact = end(640, ab2)
    errors = {steps: float((end(steps, solve) - exact).abs().max()) for steps in (20, 40)}
    first = {steps: float((end(steps, euler) - exact).abs().max()) for steps in (20, 40)}
    assert errors[20] < 0.5 * first[20]
    assert errors[20] / errors[40] > 3 > first[20] / first[40]


@pytest.mark.parametrize("solve", [ab2, dpmpp_2m])
def test_a_state_that_a_stochastic_step_has_made_takes_an_euler_step_and_others_do_not(solve):
    schedule = flow_schedule(8)
    x, before, v, v_before = (keyed.normal((2, *SHAPE), name) for name in ("x", "before", "v", "v before"))
    history = History(v_SCFHW=v_before, known_S=torch.tensor([True, False]), x_SCFHW=before)
    stepped, plain = (by(x, v, history, schedule, 3) for by in (solve, euler))
    assert torch.equal(stepped[1], plain[1])
    assert (stepped[0] - plain[0]).abs().max() > 1e-3
    assert torch.equal(solve(x, v, None, schedule, 0), euler(x, v, None, schedule, 0))


@pytest.mark.parametrize("solve", [ab2, dpmpp_2m])
def test_the_history_begins_anew_behind_the_stochastic_step(solve):
    """A rollout behind its stochastic step is denoised as one that begins there."""
    steps, schedule = 8, flow_schedule(8)
    keys = NoiseKeys(initial_B=((0, "x"), (0, "x")), sde_B=((0, "a"), (0, "b")))
    mask_BT = torch.zeros(2, steps, dtype=torch.bool)
    mask_BT[1, 3] = True
    made = denoise(POLICY, torch.zeros(2, 1, 1), keys, schedule, mask_BT, solve=solve)
    assert torch.equal(made.latent_BCFHW[:1], _ode_from(schedule, solve, 0, keyed.normal(SHAPE, 0, "x")[None]))
    assert torch.equal(made.latent_BCFHW[1:], _ode_from(schedule, solve, 4, made.transitions.x_next_NCFHW))
    assert made.velocities == 4 + 2 * 4


def _ode_from(schedule, solve, first, x):
    history = None
    for step in range(first, len(schedule)):
        v = _velocity(x, schedule.timestep_T[step].expand(len(x)))
        x, history = (
            solve(x, v, history, schedule, step),
            History(v_SCFHW=v, known_S=torch.ones(len(x), dtype=torch.bool), x_SCFHW=x),
        )
    return x


def test_a_grid_that_begins_at_pure_noise_and_ends_at_data_has_no_infinite_step():
    """Where sigma is 1 or 0 the log of alpha over sigma is infinite."""
    schedule = flow_schedule(6, grid="diffusers")
    sigma_S = schedule.sigma_S.clone()
    sigma_S[0] = 1.0
    from_one = type(schedule)(**{**vars(schedule), "sigma_S": sigma_S, "dt_T": sigma_S.diff()})
    end = _ode_from(from_one, dpmpp_2m, 0, keyed.normal(SHAPE, 0, "x")[None])
    assert end.isfinite().all()


@pytest.mark.parametrize("name", ["none", "shared_noise", "neighbor_grpo"])
def test_a_run_trains_with_dpmpp_2m_and_replays_what_it_took(trainer, name):
    record = trainer(f"ablations={name}", "rollout.solve._target_=flash_grpo.algorithm.solvers.dpmpp_2m").iterate(1)
    assert record.transitions == 8
    assert record.ratio_drift < 1e-4
