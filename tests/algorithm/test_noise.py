"""Where siblings start: each by itself, all at one x_T, or in a neighbourhood of one."""

from dataclasses import replace

import pytest
import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.cost import counted
from flash_grpo.algorithm.noise import Tree, initial_state, noise_keys
from flash_grpo.run.settings import ConfigError

SHAPE = (4, 8, 16, 16)
BRANCHES = ("ablations=branchgrpo", "rollout.layout.group_size=16")


def _states(initial):
    batch = Layout(num_prompts=2, group_size=3).batch(1, ["a", "b"], 0)
    keys = noise_keys(batch, 0, initial)
    return torch.stack([initial_state(SHAPE, keys, row) for row in range(len(batch))]).flatten(1).double()


@pytest.mark.parametrize(("initial", "correlation"), [("independent", 0), (0.3, 1 - 0.3**2), (0.8, 1 - 0.8**2)])
def test_siblings_are_correlated_as_their_neighbourhood_says_and_prompts_are_not(initial, correlation):
    """Of 8,192 numbers: a correlation's standard error is at most 0.011."""
    matrix = torch.corrcoef(_states(initial))
    assert [matrix[0, 1], matrix[0, 2], matrix[4, 5]] == pytest.approx([correlation] * 3, abs=0.045)
    assert matrix[:3, 3:].abs().max() < 0.045
    assert _states(initial).std(1).tolist() == pytest.approx([1] * 6, abs=0.04)


def test_the_centre_of_a_neighbourhood_is_the_x_t_that_siblings_would_share():
    shared, near = _states("shared"), _states(1e-6)
    assert torch.equal(shared[0], shared[1])
    torch.testing.assert_close(near, shared, atol=1e-5, rtol=0)


def test_x_t_of_a_neighbourhood_is_standard_normal_and_its_elements_are_independent():
    """Over 1,200 prompts, six numbers each: within four standard errors of mean 0 and covariance 1."""
    draws = []
    for iteration in range(1, 1201):
        keys = noise_keys(Layout(num_prompts=1, group_size=3).batch(iteration, ["a"], 0), 0, 0.6)
        draws.append(initial_state((6,), keys, 1))
    x = torch.stack(draws).double()
    assert x.mean(0).abs().max() < 4 / 1200**0.5
    assert (torch.cov(x.T) - torch.eye(6)).abs().max() < 4 * (2 / 1200) ** 0.5


# -- trees ---------------------------------------------------------------------------------------------------------


def _keys(tree, group_size=8, **options):
    return noise_keys(Layout(num_prompts=2, group_size=group_size).batch(3, ["", ""], 0), 0, "shared", tree, **options)


def _same(tree, taken, group_size=8):
    """Which siblings of the first prompt receive equal noise at a stochastic step: for each the first one that does."""
    keys = _keys(tree, group_size)
    found = [keys.sde(row, taken, 7) for row in range(group_size)]
    return [found.index(key) for key in found]


def test_siblings_share_noise_up_to_the_step_at_which_they_part():
    tree = Tree(steps=[1, 3, 4], branches=2)
    assert _same(tree, 0) == [0] * 8
    assert _same(tree, 1) == _same(tree, 2) == [0, 0, 0, 0, 4, 4, 4, 4]
    assert _same(tree, 3) == [0, 0, 2, 2, 4, 4, 6, 6]
    assert _same(tree, 4) == _same(tree, 5) == _same(tree, 99) == list(range(8))
    keys = _keys(tree)
    assert not {keys.sde(row, 0, 7) for row in range(8)} & {keys.sde(row, 0, 7) for row in range(8, 16)}


def test_a_tree_that_parts_nobody_before_the_first_step_is_shared_noise_and_one_of_as_many_roots_independent():
    assert _keys(Tree()) == _keys(None)
    parted = _keys(Tree(roots=8))
    alone = noise_keys(Layout(num_prompts=2, group_size=8).batch(3, ["", ""], 0), 0, "independent")
    assert (parted.initial_B, parted.sde_B, parted.together_B) == (alone.initial_B, alone.sde_B, ((),) * 16)


def test_roots_are_different_x_t_each_shared_by_its_part_of_the_siblings():
    """Seed groups: four siblings from each of two x_T, and two branches of each at the first stochastic step."""
    keys = _keys(Tree(roots=2, steps=[0, 1]))
    assert len(set(keys.initial_B)) == 4
    assert [keys.initial_B.index(key) for key in keys.initial_B[:8]] == [0, 0, 0, 0, 4, 4, 4, 4]
    assert _same(Tree(roots=2, steps=[0, 1]), 0) == [0, 0, 2, 2, 4, 4, 6, 6]


@pytest.mark.parametrize(
    ("steps", "branches", "roots", "group_size", "velocities"),
    [
        ([0, 3, 6, 9], 2, 1, 16, 1 + 3 * 2 + 3 * 4 + 3 * 8 + 16),
        ([2, 5], 4, 1, 16, 3 * 1 + 3 * 4 + 5 * 16),
        ([], 2, 4, 16, 4 + 10 * 16),
        ([4], 4, 4, 16, 5 * 4 + 6 * 16),
    ],
)
def test_a_tree_computes_one_velocity_for_each_branch_and_step(trainer, steps, branches, roots, group_size, velocities):
    """Of 11 steps the first ten are stochastic; a parting at step t makes new states from t + 1 on."""
    small = trainer(
        *BRANCHES,
        f"method.tree.steps={steps}",
        f"method.tree.branches={branches}",
        f"method.tree.roots={roots}",
    )
    made = small.rollouts.all(small.batch(1))
    counts = counted(small.method, small.layout, 11, small.seed, 1, 64)
    assert small.meter.settle() is not None
    assert small.meter.cost.forward_evaluations == counts.rollout_velocities == 2 * velocities
    states = len(made.transitions.x_SCFHW)
    assert (len(made.transitions), states) == (2 * 10 * group_size, counts.trained_states)
    assert states == 2 * (velocities - group_size)  # all but those of the last, deterministic step


def test_leaves_of_a_branch_are_one_state_until_they_part_and_differ_afterwards(trainer):
    small = trainer(*BRANCHES, "method.tree.steps=[1,4]", "method.tree.branches=4")
    taken = small.rollouts.all(small.batch(1)).transitions
    for step, width in ((0, 1), (1, 4), (3, 4), (4, 16), (9, 16)):
        rows = (taken.step_N == step) & (taken.rollout_N < 16)
        assert len(taken.x_next_NCFHW[rows].unique(dim=0)) == width, step


def test_an_update_on_a_tree_is_the_one_on_its_leaves_with_their_states_computed_one_by_one(trainer):
    """Edges that leaves share get the sum of their gradients, so a branch counts with the mean of its leaves' advantages."""
    small = trainer(*BRANCHES, "method.tree.steps=[0,5]", "method.tree.branches=4", "training.batch=1000")
    made = small.rollouts.all(small.batch(1))
    steps, condition = small.updater.steps(made, keyed.normal((2, 16), "advantage")), made.condition_BMD
    single = replace(
        steps,
        taken=replace(steps.taken, state_N=torch.arange(len(steps)), x_SCFHW=steps.taken.x_SCFHW[steps.taken.state_N]),
    )
    gradients = []
    for part in (steps, single):
        small.updater.replayer.loss(part, condition, torch.ones(len(part))).loss_N.mean().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in small.policy.trainable().values()]))
        small.updater.stepper.optimizer.zero_grad(set_to_none=True)
    torch.testing.assert_close(*gradients, atol=1e-5 * float(gradients[0].abs().max()), rtol=1e-3)


def test_before_any_update_every_edge_replays_as_it_was_taken(trainer):
    record = trainer(*BRANCHES).iterate(1)
    assert record.ratio_drift < 1e-4
    assert record.transitions == 2 * 16 * 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rollout.layout.group_size=8",), "method.tree: roots=1 and branches=2 at 4 steps .*group_size=8"),
        (("method.tree.roots=3", "method.tree.steps=[]"), "method.tree: roots=3 .*must divide it"),
        (("method.tree.steps=[0,3,6,10]",), r"method.tree.steps=\[0, 3, 6, 10\]: counts .*makes 10 of them"),
        (("method.tree.steps=[3,0,6,9]",), r"method.tree.steps=\[3, 0, 6, 9\]: must increase"),
        (("method.tree.branches=1",), "method.tree.branches=1: must be an integer, at least 2"),
        (
            ("method.name=mine", "method.initial_noise=0.3", "optim.optimizer.lr=1"),
            "method.tree: .*initial_noise=shared.* 0.3",
        ),
    ],
)
def test_a_tree_that_does_not_part_the_siblings_is_refused(trainer, overrides, message):
    with pytest.raises(ConfigError, match=message):
        trainer(*BRANCHES, *overrides)


def test_a_tree_of_siblings_with_different_steps_is_refused(trainer):
    tree = ("+method.tree._target_=flash_grpo.algorithm.noise.Tree", "method.name=mine", "optim.optimizer.lr=1")
    with pytest.raises(ConfigError, match=r"^method.tree: rollouts of a branch .*different ones"):
        trainer("ablations=no_iso_temporal", "method.initial_noise=shared", *tree)


def test_a_tree_s_keys_do_not_depend_on_how_its_group_lies_on_ranks():
    """Half of each group on each rank: what a sibling receives is keyed by the first of its branch, wherever that lies."""
    tree, layout = Tree(roots=2, steps=[0, 2]), Layout(num_prompts=2, group_size=8, optimizer_steps=2)
    alone = noise_keys(layout.batch(3, ["", ""], 0), 0, "shared", tree)
    found = []
    for rank in (0, 1):
        batch = replace(layout, world_size=2).batch(3, ["", ""], rank)
        keys = noise_keys(batch, 0, "shared", tree)
        rows = [8 * prompt + sibling for prompt, sibling in zip(batch.prompt_B, batch.sibling_B, strict=True)]
        found += rows
        for row, of_all in enumerate(rows):
            assert keys.initial_B[row] == alone.initial_B[of_all]
            assert all(keys.sde(row, taken, 7) == alone.sde(of_all, taken, 7) for taken in range(4))
    assert sorted(found) == list(range(16))
