"""What each target keeps, and that neither ranks nor micro-batches change what it trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from targets_program import PRESETS, iterated

from flash_grpo.algorithm.denoise import denoise
from flash_grpo.algorithm.noise import noise_keys

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_SDE = PRESETS[1:]


@pytest.fixture(scope="module")
def one_rank():
    return {preset: iterated(preset, "rollout.batch=3", "training.batch=3") for preset in PRESETS}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two ranks has made."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}  # flash_grpo, and conftest
    command = [*launch, str(Path(__file__).with_name("targets_program.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_group_that_lies_on_two_ranks_trains_as_on_one_with_other_micro_batches(one_rank, two_ranks, preset):
    alone, (first, second) = one_rank[preset], [made[preset] for made in two_ranks]
    assert torch.equal(first["weights"], second["weights"])
    assert alone["transitions"] == first["transitions"] == 2 * 3 * 4
    assert alone["evaluations"] == first["evaluations"]
    assert first["reward"] == pytest.approx(alone["reward"], abs=3e-4)
    assert first["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-3)
    assert (first["weights"] - alone["weights"]).abs().mean() < 1e-6  # two steps of Adam move it by up to 2e-4


@pytest.mark.parametrize(
    ("preset", "x", "x_next", "x_0"),
    [
        ("none", True, True, False),
        ("finite_difference", True, False, True),
        ("neighbor_grpo", True, True, False),
        ("awm", False, False, True),
        ("diffusion_nft", False, False, True),
    ],
)
def test_what_a_target_needs_is_kept_and_nothing_else(trainer, preset, x, x_next, x_0):
    small = trainer(f"ablations={preset}")
    made, shape = small.rollouts.all(small.batch(1)), small.policy.latent_shape
    latents, nothing = (8, *shape), (0, *shape)
    taken = made.transitions
    assert taken.x_SCFHW.shape == (latents if x else nothing)
    assert taken.x_next_NCFHW.numel() == (taken.x_SCFHW.numel() if x_next else 0)
    assert made.x_0_BCFHW.shape == (latents if x_0 else (8, 0))
    steps = small.updater.steps(made, torch.ones(2, 4))
    mask_BT = small.method.plan(made.batch, len(small.schedule), small.seed)
    assert steps.taken.step_N[steps.taken.rollout_N.argsort()].tolist() == mask_BT.nonzero()[:, 1].tolist()


@pytest.mark.parametrize("preset", WITHOUT_SDE)
def test_rollouts_of_a_target_without_an_sde_are_the_ode_bitwise(trainer, preset):
    small = trainer(f"ablations={preset}")
    batch, made = small.batch(1), small.rollouts.all(small.batch(1))
    keys = noise_keys(batch, small.seed, small.method.initial_noise)
    nothing_BT = torch.zeros(8, len(small.schedule), dtype=torch.bool)
    ode = denoise(small.policy, small.policy.encode(batch.text), keys, small.schedule, nothing_BT)
    assert torch.equal(torch.cat([small.policy.decode(ode.latent_BCFHW)]), made.video_BFHWC)
    if small.method.needs.x_0:
        assert torch.equal(made.x_0_BCFHW, ode.latent_BCFHW)


def test_a_noised_latent_and_the_straight_velocity_through_it_give_back_x_0(trainer):
    small = trainer("ablations=awm", "method.plan.draw=iid")
    made = small.rollouts.all(small.batch(1))
    steps = small.updater.steps(made, torch.ones(2, 4))
    (x, straight), (again, _) = steps.noised(small.schedule), steps.chosen(torch.tensor([2])).noised(small.schedule)
    sigma_N = small.schedule.sigma_S[steps.taken.step_N].reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(x - sigma_N * straight, made.x_0_BCFHW[steps.taken.rollout_N], atol=1e-5, rtol=0)
    assert torch.equal(again[0], x[2])
    assert (straight + made.x_0_BCFHW[steps.taken.rollout_N]).std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("preset", ["finite_difference", "neighbor_grpo"])
def test_a_group_without_spread_is_not_trained_and_one_with_a_single_zero_advantage_is_whole(trainer, preset):
    small = trainer(f"ablations={preset}")
    advantage_PG = torch.tensor([[0.0] * 4, [1.0, -1.0, 0.0, 0.0]])
    trained = small.update(small.rollouts.all(small.batch(1)), advantage_PG)
    assert trained.advantage_N.tolist() == [1, -1, 0, 0]


def test_the_old_policy_is_the_one_that_made_the_rollouts_in_every_optimizer_step(trainer):
    small = trainer("ablations=diffusion_nft", "training.epochs=2", "optim.optimizer.lr=1e-3")
    seen, target = [], small.method.target.func
    small.method = type(small.method)(
        **{**vars(small.method), "name": "mine", "target": _noting(target, seen), "kl_weight": 0.0}
    )
    small.iterate(1)
    first, later = seen[:2], seen[2:]
    moved = [(v - old).abs().max().item() > 1e-5 for v, old in first]  # below it, kernels round by their batch
    assert moved == [False, True]  # the second share's policy has moved
    assert torch.equal(first[0][1], later[0][1])


def _noting(target, seen):
    def noting(v, at):
        seen.append((v.detach(), at.old_NCFHW))
        return target(v, at)

    noting.needs = target.needs
    return noting
