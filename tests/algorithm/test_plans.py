from collections import Counter

import pytest
import torch

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.plans import FullTrajectory, OneStep, SlidingWindow

T = 20


def batch(iteration=1, num_prompts=6, group_size=4, rank=0, world_size=1):
    layout = Layout(num_prompts=num_prompts, group_size=group_size, world_size=world_size)
    return layout.batch(iteration, [f"prompt {p}" for p in range(num_prompts)], rank)


def step_of(mask_BT):
    assert (mask_BT.sum(1) == 1).all()
    return mask_BT.int().argmax(1)


PLANS = [
    FullTrajectory(),
    SlidingWindow(width=1, first_step=0, last_step=9),
    SlidingWindow(width=4, first_step=0, last_step=12, move="slide", every=2),
    OneStep(first_step=0, last_step=9),
    OneStep(first_step=0, last_step=9, draw="stratified"),
    OneStep(first_step=0, last_step=9, shared_by="rollout"),
    OneStep(first_step=0, last_step=9, shared_by="rollout", draw="stratified"),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_candidates_are_the_steps_that_some_iteration_makes_stochastic(plan):
    met_T = torch.stack([plan(batch(iteration), T, seed=3).any(0) for iteration in range(1, 100)]).any(0)
    assert torch.equal(plan.candidates(T), met_T)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_plan_is_the_same_for_any_number_of_ranks(plan, world_size):
    whole = batch()
    rows = {
        (p, s): row for row, (p, s) in enumerate(zip(whole.prompt_B.tolist(), whole.sibling_B.tolist(), strict=True))
    }
    mask_BT = plan(whole, T, seed=3)
    for rank in range(world_size):
        part = batch(rank=rank, world_size=world_size)
        chosen = [rows[pair] for pair in zip(part.prompt_B.tolist(), part.sibling_B.tolist(), strict=True)]
        assert torch.equal(plan(part, T, seed=3), mask_BT[chosen])


@pytest.mark.parametrize("plan", PLANS[1:], ids=str)
def test_drawn_plans_change_with_seed_and_iteration(plan):
    def drawn(iteration, seed):
        return plan(batch(iteration=iteration), T, seed=seed)

    assert any(not torch.equal(drawn(1, 0), drawn(iteration, 0)) for iteration in (2, 3, 4))
    assert getattr(plan, "move", "") == "slide" or any(not torch.equal(drawn(1, 0), drawn(1, seed)) for seed in (1, 2))


def test_full_trajectory_trains_all_steps_but_the_last():
    assert FullTrajectory()(batch(), T, 0).sum(1).eq(T - 1).all() and not FullTrajectory()(batch(), T, 0)[:, -1].any()
    assert FullTrajectory(skip_last=False)(batch(), T, 0).all()


def test_iso_temporal_siblings_share_their_step_and_prompts_differ():
    whole = batch(num_prompts=12)
    step_B = step_of(OneStep(first_step=0, last_step=9)(whole, T, 0))
    groups = [set(step_B[whole.prompt_B == prompt].tolist()) for prompt in range(12)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) > 1


def test_without_iso_temporal_grouping_siblings_draw_their_own_steps():
    whole = batch(num_prompts=3, group_size=16)
    step_B = step_of(OneStep(first_step=0, last_step=9, shared_by="rollout")(whole, T, 0))
    assert all(len(set(step_B[whole.prompt_B == prompt].tolist())) > 3 for prompt in range(3))


def test_independent_steps_are_uniform_over_the_candidates():
    plan = OneStep(first_step=2, last_step=6, shared_by="rollout")
    counts = Counter()
    for iteration in range(1, 26):
        counts.update(step_of(plan(batch(iteration=iteration, num_prompts=8, group_size=10), T, 0)).tolist())
    assert set(counts) == {2, 3, 4, 5, 6}
    assert all(330 < count < 470 for count in counts.values())  # 2000 draws, 400 each, sd 18


@pytest.mark.parametrize("shared_by", ["prompt", "rollout"])
def test_stratified_steps_cover_the_candidates_evenly(shared_by):
    plan = OneStep(first_step=0, last_step=9, shared_by=shared_by, draw="stratified")
    whole = batch(num_prompts=20, group_size=5)
    counts = Counter(step_of(plan(whole, T, 0)).tolist())
    assert counts == dict.fromkeys(range(10), 10)


def test_stratified_steps_spread_even_when_there_are_fewer_prompts_than_candidates():
    step_B = step_of(OneStep(first_step=0, last_step=9, draw="stratified")(batch(num_prompts=5), T, 0))
    assert sorted({step // 2 for step in step_B.tolist()}) == [0, 1, 2, 3, 4]


def test_a_random_window_is_drawn_per_rank_batch_so_that_groups_mix_steps():
    whole = batch(num_prompts=4, group_size=12)
    mask_BT = SlidingWindow(width=3, first_step=0, last_step=11)(whole, T, 0)
    start_B = mask_BT.int().argmax(1)
    assert (mask_BT.sum(1) == 3).all()
    assert all(mask_BT[row, start : start + 3].all() for row, start in enumerate(start_B.tolist()))
    for sibling in range(12):
        assert len(set(start_B[whole.sibling_B == sibling].tolist())) == 1
    assert len(set(start_B[whole.prompt_B == 0].tolist())) > 1


def test_a_sliding_window_moves_on_and_wraps_around():
    plan = SlidingWindow(width=4, first_step=0, last_step=5, move="slide", stride=1, every=25)
    starts = [int(plan(batch(iteration=i), T, 0)[0].int().argmax()) for i in (1, 25, 26, 51, 76)]
    assert starts == [0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("kind", "sizes", "named"),
    [
        (SlidingWindow, {"width": 11, "first_step": 0, "last_step": 9}, "width=11: must be at most 10"),
        (SlidingWindow, {"width": 4, "first_step": 0, "last_step": 20}, "last_step=20"),
        (SlidingWindow, {"width": 0, "first_step": 0, "last_step": 3}, "width=0"),
        (SlidingWindow, {"width": 1, "first_step": 0, "last_step": 3, "move": "hop"}, "random, slide"),
        (SlidingWindow, {"width": 1, "first_step": 0, "last_step": 3, "every": 0}, "every=0"),
        (SlidingWindow, {"width": 1, "first_step": 0, "last_step": 3, "stride": None}, "stride=null"),
        (FullTrajectory, {"skip_last": "no"}, "skip_last=no"),
        (OneStep, {"first_step": 5, "last_step": 3}, "first_step=5"),
        (OneStep, {"first_step": 0, "last_step": 20}, "last_step=20"),
        (OneStep, {"first_step": 0.5, "last_step": 3}, "first_step=0.5: must be an integer"),
        (OneStep, {"first_step": 0, "last_step": 9, "shared_by": "galaxy"}, "prompt, rollout"),
        (OneStep, {"first_step": 0, "last_step": 9, "draw": "sobol"}, "iid, stratified"),
    ],
)
def test_a_plan_that_does_not_fit_the_schedule_says_which_key(kind, sizes, named):
    with pytest.raises(ValueError, match=named):
        kind(**sizes).candidates(T)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_plans_that_fit_pass_their_check(plan):
    assert plan.candidates(T).any()
