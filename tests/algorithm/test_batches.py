from collections import Counter

import pytest
import torch

from flash_grpo.algorithm.batches import Layout, Prompts

TEXTS = Prompts(train=tuple("abcdefg"), test=("z",))


def test_every_pass_over_the_prompts_visits_each_once_in_an_order_of_its_own():
    drawn = [text for iteration in range(1, 15) for text in TEXTS.drawn(iteration, 3, seed=0)]
    passes = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one_pass) == list("abcdefg") for one_pass in passes)
    assert len({tuple(one_pass) for one_pass in passes}) > 1
    assert TEXTS.drawn(1, 7, seed=0) != TEXTS.drawn(1, 7, seed=1)


@pytest.mark.parametrize("shares", ["prompts", "rollouts"])
@pytest.mark.parametrize("optimizer_steps", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_every_optimizer_step_evenly_and_nothing_is_made_twice(optimizer_steps, world_size, shares):
    layout = Layout(num_prompts=4, group_size=6, optimizer_steps=optimizer_steps, shares=shares, world_size=world_size)
    batches = [layout.batch(1, list("abcd"), rank) for rank in range(world_size)]
    made = Counter(pair for b in batches for pair in zip(b.prompt_B.tolist(), b.sibling_B.tolist(), strict=True))
    assert made == {(prompt, sibling): 1 for prompt in range(4) for sibling in range(6)}
    shares = [torch.bincount(b.optimizer_step_B).tolist() for b in batches]
    assert shares == [[24 // optimizer_steps // world_size] * optimizer_steps] * world_size
    assert all(b.text[row] == "abcd"[b.prompt_B[row]] for b in batches for row in range(len(b)))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"optimizer_steps": 3}, "optimizer_steps=3"),
        ({"epochs": 0}, "training.epochs=0"),
        ({"shares": "groups"}, "training.shares=groups"),
        ({"world_size": 5}, "5 ranks"),
    ],
)
def test_a_layout_that_cannot_work_says_which_key(bad, named):
    with pytest.raises(ValueError, match=named):
        Layout(**{"num_prompts": 4, "group_size": 6, **bad})


def _optimizer_steps(layout, iteration):
    """Return the optimizer step of every rollout [P, G], put together from all ranks."""
    step_PG = torch.full((layout.num_prompts, layout.group_size), -1)
    for rank in range(layout.world_size):
        batch = layout.batch(iteration, [""] * layout.num_prompts, rank)
        step_PG[batch.prompt_B, batch.sibling_B] = batch.optimizer_step_B
    return step_PG


def test_an_optimizer_step_trains_on_whole_prompts_or_on_drawn_rollouts():
    whole = _optimizer_steps(Layout(num_prompts=4, group_size=6, optimizer_steps=2), 1)
    assert torch.equal(whole, torch.tensor([0, 0, 1, 1])[:, None].expand(4, 6))
    drawn = [
        _optimizer_steps(
            Layout(num_prompts=4, group_size=6, optimizer_steps=2, shares="rollouts", seed=seed), iteration
        )
        for seed, iteration in ((0, 1), (0, 2), (1, 1))
    ]
    assert all(step_PG.unique(dim=1).shape[1] > 1 for step_PG in drawn)  # some group is split
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_drawn_shares_do_not_depend_on_ranks_and_siblings_stay_side_by_side():
    def layout(world_size):
        return Layout(num_prompts=4, group_size=6, optimizer_steps=2, shares="rollouts", world_size=world_size)

    assert torch.equal(_optimizer_steps(layout(1), 3), _optimizer_steps(layout(4), 3))
    assert layout(1).batch(3, [""] * 4, 0).prompt_B.diff().min() >= 0
