import numpy as np
import torch

from flash_grpo.algorithm import keyed


def test_a_key_always_draws_the_same_and_another_key_another():
    assert torch.equal(keyed.normal((4, 3), 1, "sde", 2), keyed.normal((4, 3), 1, "sde", 2))
    drawn = [keyed.normal((8,), *key) for key in [(1, 2, 3), (1, 3, 2), (12, 3), (1, 2, "3"), ("1", 2, 3)]]
    assert len({tuple(noise.tolist()) for noise in drawn}) == len(drawn)


def test_draws_neither_read_nor_move_the_global_state():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = keyed.normal((3,), 5)
    torch.manual_seed(99)
    assert torch.equal(first, keyed.normal((3,), 5))
    torch.manual_seed(0)
    keyed.normal((3,), 6)
    assert torch.equal(state, torch.get_rng_state())


def test_noise_is_standard_normal():
    noise = keyed.normal((200_000,), "moments")
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01 and noise.dtype == torch.float32


def test_integers_hit_both_ends_and_permutations_are_permutations():
    assert {keyed.integer(3, 5, "ends", i) for i in range(60)} == {3, 4, 5}
    assert sorted(keyed.permutation(10, "order")) == list(range(10)) != keyed.permutation(10, "order")


def test_several_draws_are_those_of_each_key_alone():
    key_N = [(0, "sde", 1), ("another", 2), (0, "sde", 1)]
    for shape in ((4, 3), ()):
        alone = [keyed.generator(*key).standard_normal(shape, dtype=np.float32) for key in key_N]
        assert keyed.normals(shape, key_N).tolist() == np.stack(alone).tolist()
    assert keyed.normals((4, 3), []).shape == (0, 4, 3)
