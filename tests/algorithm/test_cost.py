"""What an iteration costs, from masks, keys and ranks: against the meter, and against closed forms."""

import pytest
import torch

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.cost import Counts, counted, distinct_states, drawn_share, expected
from flash_grpo.algorithm.noise import NoiseKeys
from flash_grpo.records.schema import COST_PHASES
from flash_grpo.run.build import planned
from flash_grpo.tiny_world.reward import ShapesReward
from flash_grpo.training.steps import trained_PG

METHODS = ["full_trajectory", "sliding_window", "naive_one_step", "no_rectification", "none", "shared_noise"]
METHODS += ["finite_difference", "neighbor_grpo", "awm", "diffusion_nft", "tempflow", "branchgrpo"]

EPOCHS = ("training.epochs=2", "training.optimizer_steps=2", "training.shares=rollouts")


def _planned(config, world_size=1, *overrides):
    schedule, method, _, layout = planned(config(*overrides), world_size)
    return method, layout, len(schedule)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("more", [(), ("model.guidance=3", "method.kl_weight=0.1"), ("rollout.batch=3",), EPOCHS])
def test_the_counts_are_what_the_meter_counts(trainer, name, more):
    tree = ("method.tree.steps=[0,3]",) if name == "branchgrpo" else ()  # of four siblings
    small = trainer(f"ablations={name}", *tree, *more)
    policy, kl = small.policy, small.method.kl_weight > 0
    before = forwards = backwards = pflop = pflop_all = videos = 0
    for iteration in (1, 2):
        record = small.iterate(iteration)
        counts = counted(small.method, small.layout, len(small.schedule), small.seed, iteration, small.rollouts.at_once)
        forwards += counts.forwards(policy.evaluations_per_velocity, kl)
        backwards += counts.backwards(policy.evaluations_per_velocity)
        pflop += counts.pflop(policy.evaluations_per_velocity, policy.flops, kl)
        pflop_all += counts.pflop_all(policy.evaluations_per_velocity, policy.flops, kl)
        videos += counts.videos
        cost = record.cost
        assert record.transitions > before
        assert (cost.forward_evaluations, cost.backward_evaluations) == (forwards, backwards)
        assert cost.pflop == pytest.approx(pflop)
        assert cost.pflop_all == pytest.approx(pflop_all)
        assert cost.decodes == cost.scored_videos == videos
        assert cost.recomputed_evaluations == 0
        phases = [getattr(cost, f"{phase}_seconds") for phase in COST_PHASES]
        assert sum(phases) == pytest.approx(cost.device_seconds)
        assert min(phases) > 0


def test_a_reward_that_is_a_network_is_in_the_flops_of_all(trainer, monkeypatch):
    """With the shape of the run's videos and one of its prompts; the transformer's own PFLOP stay."""
    plain = trainer().iterate(1).cost
    monkeypatch.setattr(ShapesReward, "flops", lambda _, shape, text: 1e9 * shape[0] * len(text), raising=False)
    small = trainer()
    cost, text = small.iterate(1).cost, sorted(small.prompts.train, key=len)[len(small.prompts.train) // 2]
    assert cost.pflop == plain.pflop
    assert cost.pflop_all - plain.pflop_all == pytest.approx(8 * 1e-15 * 1e9 * 9 * len(text))
    counts = counted(small.method, small.layout, len(small.schedule), small.seed, 1, small.rollouts.at_once)
    assert counts.pflop_all(1, small.meter.flops, kl=False) == pytest.approx(cost.pflop_all)


def test_transitions_without_an_advantage_are_not_counted(trainer):
    small = trainer()
    counts = counted(small.method, small.layout, 11, 0, 1, 64, kept=lambda batch: batch.sibling_B > 1)
    assert counts == Counts(rollout_velocities=8 * 11, trained_states=4, videos=8)


@pytest.mark.parametrize("name", ["none", "full_trajectory", "shared_noise", "awm", "diffusion_nft"])
@pytest.mark.parametrize("epochs", [(), EPOCHS])
def test_rollouts_that_are_explored_and_not_trained_cost_no_update(trainer, name, epochs):
    """Half of four siblings are trained, those with the largest advantages; the counts are the meter's."""
    small, found = trainer(f"ablations={name}", "rollout.train_fraction=0.5", *epochs), []
    update = small.updater.update
    small.updater.update = lambda rollouts, advantage_PG: (found.append(advantage_PG), update(rollouts, advantage_PG))[
        1
    ]
    record = small.iterate(1)
    kept_PG = trained_PG(small.method.needs, found[0], 0.5)

    def kept(batch):
        return kept_PG[batch.prompt_B, batch.sibling_B]

    counts = counted(small.method, small.layout, 11, small.seed, 1, 64, kept)
    whole = counted(small.method, small.layout, 11, small.seed, 1, 64)
    assert kept_PG.sum(1).tolist() == [2, 2]
    for kept_G, advantage_G in zip(kept_PG, found[0].abs(), strict=True):
        assert advantage_G[kept_G].min() >= advantage_G[~kept_G].max()
    assert record.transitions == small.layout.epochs * 4 * (10 if name == "full_trajectory" else 1)
    assert (counts.rollout_velocities, counts.videos) == (whole.rollout_velocities, whole.videos)
    assert counts.trained_states < whole.trained_states or name == "shared_noise"  # whose siblings are one state
    kl = small.method.kl_weight > 0
    assert record.cost.forward_evaluations == counts.forwards(1, kl)
    assert record.cost.backward_evaluations == counts.backwards(1)


def test_before_there_are_rewards_a_drawn_share_stands_for_the_trained_ones(config):
    method, layout, steps = _planned(config, 1, "rollout.layout.group_size=8")
    mean, spread = expected(method, layout, steps, seed=0, rollout_batch=64, iterations=8, train_fraction=0.3)
    assert (mean.trained_states, spread.trained_states, mean.rollout_velocities) == (2 * 3, 0, 2 * 8 * 11)
    batch = layout.batch(1, ["", ""], 0)
    assert drawn_share(0.3, 0)(batch).reshape(2, 8).sum(1).tolist() == [3, 3]


@pytest.mark.parametrize("step", [0, 4, 9])
def test_shared_noise_saves_all_but_one_sibling_up_to_the_stochastic_step(config, step):
    fixed = (f"method.plan.first_step={step}", f"method.plan.last_step={step}", "rollout.layout.group_size=6")
    shared = counted(*_planned(config, 1, "ablations=shared_noise", *fixed), 0, 1, 64)
    alone = counted(*_planned(config, 1, *fixed), 0, 1, 64)
    assert alone == Counts(rollout_velocities=12 * 11, trained_states=12, videos=12)
    assert alone.rollout_velocities - shared.rollout_velocities == 2 * (6 - 1) * (step + 1)
    assert (shared.trained_states, shared.videos) == (2, 12)


def test_groups_that_are_split_over_ranks_share_less(config):
    """On two ranks the only group's halves share their noise each by itself."""
    fixed = ("ablations=shared_noise", "method.plan.first_step=4", "method.plan.last_step=4")
    one_group = ("rollout.layout.num_prompts=1", "rollout.layout.group_size=8")
    whole, halves = (counted(*_planned(config, ranks, *fixed, *one_group), 0, 1, 64) for ranks in (1, 2))
    assert 8 * 11 - whole.rollout_velocities == 7 * 5
    assert 8 * 11 - halves.rollout_velocities == 2 * 3 * 5
    assert (whole.trained_states, halves.trained_states) == (1, 2)


def test_at_the_release_s_sizes_shared_noise_saves_a_quarter_of_the_rollouts(config):
    release = ("schedule.num_steps=20", "rollout.layout.num_prompts=48", "rollout.layout.group_size=8")
    mean, spread = expected(*_planned(config, 1, "ablations=shared_noise", *release), seed=0, rollout_batch=1)
    saved = 1 - mean.rollout_velocities / (48 * 8 * 20)
    assert saved == pytest.approx(7 / 8 * 5.5 / 20, abs=0.01)  # steps 0-9 alike: 5.5 of 20 on average
    assert spread.rollout_velocities == pytest.approx(48**0.5 * 7 * 8.25**0.5, rel=0.25)  # of 48 uniform draws
    assert (spread.trained_states, mean.trained_states, mean.videos) == (0, 48, 384)


def test_a_plan_without_chance_has_no_spread(config):
    mean, spread = expected(*_planned(config, 1, "method=full"), seed=0, rollout_batch=64, iterations=4)
    assert mean == Counts(rollout_velocities=88, trained_states=80, videos=8)
    assert spread == Counts(rollout_velocities=0, trained_states=0, videos=0)


def test_a_tree_of_equal_keys_is_one_state_up_to_each_branch():
    """Four rollouts that start alike, part in two at step 1, and each go alone from step 3 on."""
    keys = NoiseKeys(initial_B=(("x",),) * 4, sde_B=(("a",), ("a",), ("b",), ("b",)))
    mask_BT = torch.zeros(4, 5, dtype=torch.bool)
    mask_BT[:, 1] = True
    every_B = torch.ones(4, dtype=torch.bool)
    assert distinct_states(keys, mask_BT, every_B, torch.tensor([0, 0, 0, 0])) == (1 + 1 + 2 + 2 + 2, 1)
    assert distinct_states(keys, mask_BT, every_B, torch.tensor([0, 1, 0, 1])) == (1 + 1 + 2 + 2 + 2, 2)


def test_layouts_on_more_ranks_make_the_same_videos():
    for world_size in (1, 2, 4):
        layout = Layout(num_prompts=4, group_size=4, world_size=world_size)
        assert sum(len(layout.batch(1, [""] * 4, rank)) for rank in range(world_size)) == 16
