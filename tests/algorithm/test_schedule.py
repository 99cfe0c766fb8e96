import pytest
import torch
from diffusers import UniPCMultistepScheduler

from flash_grpo.algorithm.schedule import fingerprint, flow_schedule


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
    assert (schedule.std_T > 0).all() and schedule.std_T.isfinite().all()


def test_the_linear_std_is_the_second_sigma_times_sigma():
    schedule = flow_schedule(20, noise_level=0.5)
    torch.testing.assert_close(schedule.std_T, 0.5 * schedule.sigma_S[1] * schedule.sigma_S[:-1])
    assert schedule.sigma_S[1].item() == pytest.approx(0.98242, abs=1e-5)


def test_the_flow_std_is_the_root_of_the_odds():
    schedule = flow_schedule(20, noise="flow", noise_level=0.7)
    sigma = schedule.sigma_S[1:-1]
    torch.testing.assert_close(schedule.std_T[1:], 0.7 * (sigma / (1 - sigma)).sqrt())


def test_fingerprints_tell_grids_and_noises_apart():
    kinds = [flow_schedule(20), flow_schedule(20, grid="diffusers"), flow_schedule(20, noise="flow"), flow_schedule(12)]
    assert len({fingerprint(schedule) for schedule in kinds}) == len(kinds)
    assert fingerprint(flow_schedule(20)) == fingerprint(flow_schedule(20))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"num_steps": 1}, "num_steps=1"),
        ({"noise": "cosine"}, "linear, flow"),
        ({"grid": "karras"}, "release, diffusers"),
        ({"noise_level": 0.0}, "noise_level=0.0"),
        ({"shift": -1.0}, "shift=-1.0"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(bad, named):
    with pytest.raises(ValueError, match=named):
        flow_schedule(**{"num_steps": 20, **bad})
