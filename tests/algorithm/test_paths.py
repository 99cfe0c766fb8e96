"""A path evaluates where it says, keeps the stochastic step of the grid, and is counted; on the whole grid nothing changes."""

import pytest
import torch

from flash_grpo.algorithm.cost import counted
from flash_grpo.algorithm.denoise import denoise
from flash_grpo.algorithm.noise import noise_keys
from flash_grpo.algorithm.paths import Path, on_places, routes
from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.run.settings import ConfigError

BRANCHES = ("ablations=short_branches", "rollout.layout.num_prompts=2", "rollout.layout.group_size=4")
SMALL_BAND = ("method.plan.first_step=2", "method.plan.last_step=8", "budget.pflop=null", "optim.anneal.to=1")


@pytest.mark.parametrize(
    ("path", "places"),
    [
        (Path(), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
        (Path(lead=2), (0, 2, 4, 5, 6, 7, 8, 9, 10)),
        (Path(lead=3, follow=2), (0, 4 / 3, 8 / 3, 4, 5, 7.5, 10)),
        (Path(lead=0, follow=0), (4, 5)),
        (Path(lead=99, follow=99), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
    ],
)
def test_a_path_has_equal_distances_before_its_step_and_behind_it(path, places):
    assert path.places(4, 10) == pytest.approx(places)


def test_the_last_step_of_the_grid_is_followed_by_nothing():
    assert Path(follow=3).places(9, 10) == tuple(range(11))


@pytest.mark.parametrize("noise", ["linear", "flow", "cps"])
def test_a_path_s_stochastic_step_is_the_grid_s_own(noise):
    grid, places = flow_schedule(10, noise=noise), Path(lead=3, follow=2).places(4, 10)
    path = on_places(grid, places)
    assert [float(sigma) for sigma in path.sigma_S[[0, 3, 4, 6]]] == [float(grid.sigma_S[at]) for at in (0, 4, 5, 10)]
    assert float(path.sigma_S[5]) == pytest.approx(float(grid.sigma_S[7:9].mean()))
    for name in ("timestep_T", "dt_T", "x_factor_T", "v_factor_T", "noise_std_T"):
        assert getattr(path, name)[3] == getattr(grid, name)[4], name
    assert path.noise_std_T[[0, 1, 2, 4, 5]].tolist() == [0.0] * 5
    assert path.timestep_T.tolist() == (1000 * path.sigma_S[:-1].double()).floor().long().tolist()


def test_a_path_as_long_as_the_grid_makes_the_grid_s_rollouts(trainer):
    """Computed in other micro-batches, so equal to float noise."""
    whole = trainer("ablations=shared_noise")
    long = trainer("ablations=shared_noise", "rollout.path.lead=99", "rollout.path.follow=99")
    made, again = (small.rollouts.all(small.batch(1)) for small in (whole, long))
    kept, order = again.transitions, made.transitions.rollout_N.argsort()
    assert kept.step_N.tolist() == made.transitions.step_N[order].tolist()
    torch.testing.assert_close(kept.x_next_NCFHW, made.transitions.x_next_NCFHW[order], atol=1e-5, rtol=1e-5)
    assert (again.video_BFHWC.int() - made.video_BFHWC.int()).abs().max() <= 1


def test_without_evaluations_behind_it_a_step_is_followed_along_its_own_velocity(trainer):
    small = trainer("ablations=shared_noise", "rollout.path.lead=1", "rollout.path.follow=0")
    batch, schedule = small.batch(1), small.schedule
    mask_BT = small.method.plan(batch, len(schedule), 0)
    for route in routes(batch, mask_BT, small.rollouts.path, 64):
        condition = small.policy.encode(route.batch.text)
        keys = noise_keys(route.batch, 0, "shared")
        made = denoise(small.policy, condition, keys, on_places(schedule, route.place_S), route.mask_BT)
        taken = made.transitions
        step = int(route.grid_step(taken.step_N)[0])
        with torch.no_grad():
            v = small.policy.velocity(taken.x_SCFHW, schedule.timestep_T[step].expand(1), condition[:1])
        expected = taken.x_next_NCFHW - schedule.sigma_S[step + 1] * v
        torch.testing.assert_close(made.latent_BCFHW, expected, atol=1e-6, rtol=1e-6)
        assert made.velocities == (2 if step else 1)


@pytest.mark.parametrize("name", ["shared_noise", "none", "naive_one_step"])
@pytest.mark.parametrize("path", [("1", "0"), ("2", "3"), ("null", "2"), ("3", "null")])
def test_what_a_path_costs_is_counted_as_the_meter_counts_it(trainer, name, path):
    small = trainer(f"ablations={name}", f"rollout.path.lead={path[0]}", f"rollout.path.follow={path[1]}")
    record = small.iterate(1)
    counts = counted(small.method, small.layout, len(small.schedule), 0, 1, 64, path=small.rollouts.path)
    assert record.cost.forward_evaluations == counts.forwards(1, kl=False)
    assert record.cost.backward_evaluations == counts.backwards(1)
    assert record.cost.decodes == 8


@pytest.mark.parametrize("noise", ["linear", "flow", "cps"])
def test_before_any_update_the_step_replayed_is_the_step_taken(trainer, noise):
    small = trainer(*BRANCHES, *SMALL_BAND, f"schedule.noise={noise}")
    record = small.iterate(1)
    assert record.ratio_drift < 1e-4
    assert sum(record.steps[2:9]) == pytest.approx(1)


@pytest.mark.parametrize("method", [("method=full",), ("method=window", "method.plan.width=2")])
def test_a_path_around_several_steps_is_refused(trainer, method):
    with pytest.raises(ConfigError, match=r"^rollout.path: leads to one trained step .* have several"):
        trainer(*method, "rollout.path.follow=2")


@pytest.mark.parametrize("value", ["-1", "1.5", "word"])
def test_a_path_that_is_no_number_of_evaluations_is_refused(trainer, value):
    with pytest.raises(ConfigError, match=r"^rollout.path.follow="):
        trainer(f"rollout.path.follow={value}")
