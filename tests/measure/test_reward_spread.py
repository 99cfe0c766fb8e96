"""Rewards, videos and scorings whose spread is known."""

import pytest
import torch

from flash_grpo.measure.reward_spread import noise_share, nudged, reward_spread, video_distance


def test_variance_is_parted_into_within_and_between_groups():
    draw = torch.Generator().manual_seed(0)
    reward_QG = 3 + 2 * torch.randn(4000, 1, generator=draw) + torch.randn(4000, 8, generator=draw)
    found = reward_spread(reward_QG)
    assert found.mean == pytest.approx(3, abs=0.1)
    assert found.within == pytest.approx(1, rel=0.05)
    assert found.between == pytest.approx(4, rel=0.1)
    assert found.std == pytest.approx(5**0.5, rel=0.05)
    assert found.quantiles[2] == pytest.approx(3, abs=0.1) and list(found.quantiles) == sorted(found.quantiles)
    assert found.without_spread == 0


def test_groups_of_equal_rewards_are_counted():
    found = reward_spread(torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 3.0], [0.0, 0.0]]))
    assert found.without_spread == 0.75


@pytest.mark.parametrize(("noise", "share"), [(0.0, 0.0), (1.0, 0.5), (10.0, 100 / 101)])
def test_two_scorings_tell_the_share_of_noise(noise, share):
    draw = torch.Generator().manual_seed(0)
    true_QG = torch.randn(2000, 8, generator=draw)
    first, second = (true_QG + noise * torch.randn(2000, 8, generator=draw) for _ in (0, 1))
    assert noise_share(first, second) == pytest.approx(share, abs=0.02)


def test_a_shift_of_a_whole_group_is_no_noise_and_equal_rewards_have_none():
    reward_QG = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    assert noise_share(reward_QG, reward_QG + torch.tensor([[1.0], [-1.0]])) == pytest.approx(0)
    assert noise_share(torch.ones(2, 2), torch.ones(2, 2)) == 0


def test_the_distance_of_videos_is_the_root_mean_square_over_their_pairs():
    video = torch.randint(0, 256, (4, 3, 5, 5, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pairs = [(video[i].float() - video[j].float()).square().mean() for i in range(4) for j in range(i)]
    assert video_distance(video) == pytest.approx(float(torch.stack(pairs).mean().sqrt()))
    assert video_distance(video[:1].expand(4, -1, -1, -1, -1)) == 0


def test_a_nudge_moves_by_at_most_one_grey_level_and_does_not_wrap():
    video = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(2, 2, 20, 20, 3)
    moved = nudged(video, 0, "x")
    assert moved.dtype == torch.uint8
    assert set((moved.short() - video.short()).unique().tolist()) == {-1, 0, 1}
    assert torch.equal(moved, nudged(video, 0, "x")) and not torch.equal(moved, nudged(video, 1, "x"))
