import pytest
import torch
from diffusers import UniPCMultistepScheduler

from flash_grpo.algorithm.schedule import check_stochastic, diffusion_coefficient, fingerprint, flow_schedule


def test_the_release_grid_has_the_published_timesteps():
    published = [999, 982, 963, 944, 922, 899, 874, 847, 817, 785]
    assert flow_schedule(20).timestep_T[:10].tolist() == published


def test_the_diffusers_grid_is_the_one_that_diffusers_builds():
    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    theirs.set_timesteps(20)
    ours = flow_schedule(20, grid="diffusers")
    torch.testing.assert_close(ours.sigma_S, theirs.sigmas, atol=2e-6, rtol=0)
    assert ours.timestep_T.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("num_steps", [2, 12, 20, 50])
@pytest.mark.parametrize("grid", ["release", "diffusers"])
@pytest.mark.parametrize("noise", ["linear", "flow"])
def test_every_grid_goes_down_from_noise_to_data_with_finite_noise(num_steps, grid, noise):
    schedule = flow_schedule(num_steps, grid=grid, noise=noise)
    assert len(schedule) == num_steps and schedule.sigma_S[-1] == 0
    assert (schedule.dt_T < 0).all()
    assert (schedule.noise_std_T > 0).all() and schedule.noise_std_T.isfinite().all()


def diffusion_coefficient_of(schedule):
    return schedule.noise_std_T / (-schedule.dt_T).sqrt()


def test_the_linear_std_is_the_second_sigma_times_sigma():
    schedule = flow_schedule(20, noise_level=0.5)
    torch.testing.assert_close(diffusion_coefficient_of(schedule), 0.5 * schedule.sigma_S[1] * schedule.sigma_S[:-1])
    assert schedule.sigma_S[1].item() == pytest.approx(0.98242, abs=1e-5)


def test_the_flow_std_is_the_root_of_the_odds_from_the_second_step_on():
    schedule = flow_schedule(20, noise="flow", noise_level=0.7)
    sigma = schedule.sigma_S[1:-1]
    torch.testing.assert_close(diffusion_coefficient_of(schedule)[1:], 0.7 * (sigma / (1 - sigma)).sqrt())


def test_the_flow_std_of_the_first_step_takes_the_second_sigma_into_its_denominator():
    released = flow_schedule(20, noise="flow", noise_level=1.0)
    assert diffusion_coefficient_of(released)[0].item() == pytest.approx(7.541, abs=1e-3)
    sigma_T = torch.tensor([1.0, 0.9, 0.5], dtype=torch.float64)  # a grid that begins at 1, as Flow-GRPO's does
    expected = torch.tensor([(1 / 0.1) ** 0.5, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(diffusion_coefficient(sigma_T, "flow", 1.0), expected)


def test_each_sde_has_a_noise_level_of_its_own():
    for noise, level in {"linear": 1.0, "flow": 0.7, "cps": 0.8}.items():
        assert fingerprint(flow_schedule(20, noise=noise)) == fingerprint(
            flow_schedule(20, noise=noise, noise_level=level)
        )


def test_the_constant_sde_takes_dancegrpos_step():
    """Mean x + dt·(v + ½η²·(x + (1-σ)v)/σ), std η·sqrt(-dt)."""
    schedule = flow_schedule(20, noise="constant")
    sigma_T, dt_T = schedule.sigma_S[:-1], schedule.dt_T
    torch.testing.assert_close(schedule.noise_std_T, 0.3 * (-dt_T) ** 0.5)
    torch.testing.assert_close(schedule.x_factor_T, 1 + dt_T * 0.5 * 0.3**2 / sigma_T)
    torch.testing.assert_close(schedule.v_factor_T, 1 + 0.5 * 0.3**2 * (1 - sigma_T) / sigma_T)


def test_max_std_bounds_the_diffusion_coefficient():
    bounded, free = (flow_schedule(20, noise="flow", max_std=bound) for bound in (2.0, None))
    expected = diffusion_coefficient_of(free).clamp(max=2.0)
    torch.testing.assert_close(diffusion_coefficient_of(bounded), expected)
    assert expected[0] == 2.0 and expected[-1] < 2.0


def test_a_stochastic_step_that_reverses_the_latents_is_refused():
    strong = flow_schedule(20, noise="flow", noise_level=2.0)
    with pytest.raises(ValueError, match=r"noise_level.*step 0 .*-0\.96.*max_std"):
        check_stochastic(strong, torch.arange(20) < 10)
    check_stochastic(strong, torch.arange(20) >= 10)
    check_stochastic(flow_schedule(20, noise="flow", noise_level=2.0, max_std=2.0), torch.arange(20) < 10)


def test_a_stochastic_step_without_noise_is_refused():
    with pytest.raises(ValueError, match="adds no noise at step 19"):
        check_stochastic(flow_schedule(20, noise="cps"), torch.ones(20, dtype=torch.bool))
    check_stochastic(flow_schedule(20, noise="cps"), torch.arange(20) < 19)


def test_fingerprints_tell_grids_and_noises_apart():
    kinds = [flow_schedule(20), flow_schedule(20, grid="diffusers"), flow_schedule(20, noise="flow"), flow_schedule(12)]
    kinds += [flow_schedule(20, noise="cps")]
    assert len({fingerprint(schedule) for schedule in kinds}) == len(kinds)
    assert fingerprint(flow_schedule(20)) == fingerprint(flow_schedule(20))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"num_steps": 1}, "num_steps=1"),
        ({"noise": "cosine"}, "linear, flow, cps"),
        ({"grid": "karras"}, "release, diffusers"),
        ({"noise_level": 0.0}, "noise_level=0.0"),
        ({"noise_level": float("inf")}, "noise_level=inf"),
        ({"noise": "cps", "noise_level": 1.1}, "noise_level=1.1"),
        ({"max_std": 0.0}, "max_std=0.0"),
        ({"noise": "cps", "max_std": 1.0}, "max_std=1.0"),
        ({"shift": -1.0}, "shift=-1.0"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(bad, named):
    with pytest.raises(ValueError, match=named):
        flow_schedule(**{"num_steps": 20, **bad})
