import pytest
import torch

from flash_grpo.algorithm.advantage import group_relative, largest, trained_siblings

REWARD = torch.tensor([[1.0, 3.0], [10.0, 14.0]])


def test_batch_std_scales_all_groups_alike():
    expected = torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]) / (REWARD.std(correction=0) + 1e-4)
    torch.testing.assert_close(group_relative(REWARD), expected)


def test_group_std_scales_each_group_by_its_own():
    torch.testing.assert_close(
        group_relative(REWARD, std="group", epsilon=1e-12), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    )


def test_without_std_the_advantage_is_the_difference_from_the_mean():
    torch.testing.assert_close(group_relative(REWARD, std="none"), torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]))


def test_advantages_are_clipped():
    reward_PG = torch.cat([torch.zeros(1, 99), torch.full((1, 1), 100.0)], 1)
    assert group_relative(reward_PG, clip=5.0).max() == 5
    assert group_relative(reward_PG, clip=None).max() > 9


def test_a_group_without_spread_has_zero_advantage():
    advantage_PG = group_relative(torch.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]]))
    assert (advantage_PG[0] == 0).all() and (advantage_PG[1] != 0).any()


def test_an_unknown_std_is_named():
    with pytest.raises(ValueError, match="batch, group, none"):
        group_relative(REWARD, std="global")


def test_the_largest_advantages_of_each_group_are_chosen_and_of_equal_ones_the_first():
    advantage_PG = torch.tensor([[0.1, -3.0, 2.0, 0.0], [1.0, -1.0, 1.0, -1.0]])
    chosen_PG = largest(advantage_PG, 0.5)
    assert chosen_PG.tolist() == [[False, True, True, False], [True, True, False, False]]
    assert largest(advantage_PG, 1.0).all()


@pytest.mark.parametrize(
    ("fraction", "group_size", "trained"),
    [(1.0, 8, 8), (0.5, 8, 4), (0.3, 10, 3), (0.26, 8, 3), (0.01, 8, 2), (0.7, 10, 7)],
)
def test_a_share_of_a_group_is_rounded_up_and_at_least_two(fraction, group_size, trained):
    assert trained_siblings(fraction, group_size) == trained
