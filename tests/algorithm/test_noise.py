"""Where siblings start: each by itself, all at one x_T, or in a neighbourhood of one."""

import pytest
import torch

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.noise import initial_state, noise_keys

SHAPE = (4, 8, 16, 16)


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
