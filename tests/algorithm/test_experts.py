"""Which transformer computes which timestep."""

import torch

from flash_grpo.algorithm.experts import ONE, Experts, experts_of

TWO = Experts(names=("transformer", "transformer_2"), boundary=875.0)


def test_a_timestep_at_the_boundary_is_of_high_noise():
    assert TWO.of(torch.tensor([1000, 875, 874, 0])).tolist() == [0, 0, 1, 1]
    assert ONE.of(torch.tensor([1000, 0])).tolist() == [0, 0]
    assert [int(TWO.of(TWO.timestep(expert))) for expert in (0, 1)] == [0, 1]


def test_rows_are_of_one_expert_and_together_all():
    timestep_N = torch.tensor([100, 900, 990, 200, 950, 300])
    assert [rows.tolist() for rows in TWO.rows(timestep_N, 2)] == [[1, 2], [4], [0, 3], [5]]
    assert [rows.tolist() for rows in ONE.rows(timestep_N, 4)] == [[0, 1, 2, 3], [4, 5]]
    assert ONE.rows(timestep_N[:0], 4) == TWO.rows(timestep_N[:0], 4) == []


def test_a_policy_that_names_none_has_one():
    assert experts_of(object()) == ONE and len(ONE) == 1
