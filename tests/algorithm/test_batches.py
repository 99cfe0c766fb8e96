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


@pytest.mark.parametrize("optimizer_steps", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_every_optimizer_step_evenly_and_nothing_is_made_twice(optimizer_steps, world_size):
    layout = Layout(num_prompts=4, group_size=6, optimizer_steps=optimizer_steps, world_size=world_size)
    batches = [layout.batch(1, list("abcd"), rank) for rank in range(world_size)]
    made = Counter(pair for b in batches for pair in zip(b.prompt_B.tolist(), b.sibling_B.tolist(), strict=True))
    assert made == {(prompt, sibling): 1 for prompt in range(4) for sibling in range(6)}
    shares = [torch.bincount(layout.optimizer_step_of(b.prompt_B)).tolist() for b in batches]
    assert shares == [[24 // optimizer_steps // world_size] * optimizer_steps] * world_size
    assert all(b.text[row] == "abcd"[b.prompt_B[row]] for b in batches for row in range(len(b)))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"optimizer_steps": 3}, "optimizer_steps=3"),
        ({"world_size": 5}, "5 ranks"),
    ],
)
def test_a_layout_that_cannot_work_says_which_key(bad, named):
    with pytest.raises(ValueError, match=named):
        Layout(**{"num_prompts": 4, "group_size": 6, **bad})
