import pytest
import torch

from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.algorithm.sde import rectification_factor
from flash_grpo.algorithm.weighting import (
    inverse_first_term,
    inverse_lambda,
    noise_std,
    proportional_to_interval,
    rescaled_to_mean_one,
    uniform,
)


def test_rectification_undoes_lambda():
    schedule = flow_schedule(20)
    torch.testing.assert_close(inverse_lambda(schedule) * rectification_factor(schedule), torch.ones(20))


def test_the_uniform_weight_is_one():
    assert torch.equal(uniform(flow_schedule(20)), torch.ones(20))


def test_the_first_term_alone_is_noise_std_over_dt():
    schedule = flow_schedule(20)
    torch.testing.assert_close(inverse_first_term(schedule), schedule.noise_std_T / -schedule.dt_T)


def test_with_pcpos_weight_a_step_counts_as_much_as_it_moves_the_latents():
    schedule = flow_schedule(20)
    credit_T = proportional_to_interval(schedule) * rectification_factor(schedule)
    torch.testing.assert_close(credit_T, -schedule.dt_T)
    assert credit_T.sum().item() == pytest.approx(float(schedule.sigma_S[0]))


def test_tempflows_weight_of_the_linear_sde_is_its_std_times_the_root_of_the_interval():
    schedule = flow_schedule(20)
    std_T = schedule.sigma_S[1] * schedule.sigma_S[:-1]
    torch.testing.assert_close(noise_std(schedule), std_T * (-schedule.dt_T).sqrt())


def test_rescaled_weights_have_mean_one_over_the_update_not_over_a_part_of_it():
    weight_N = inverse_lambda(flow_schedule(20))[torch.tensor([0, 0, 3, 9])]
    scaled = torch.cat([rescaled_to_mean_one(half, weight_N.mean(), varies=True) for half in weight_N.split(2)])
    assert scaled.mean().item() == pytest.approx(1)
    assert scaled[:2].mean().item() > 1.1


@pytest.mark.filterwarnings("error")
def test_an_update_at_one_step_warns_that_rectification_has_no_effect():
    weight_N = inverse_lambda(flow_schedule(20))[torch.tensor([4, 4, 4])]
    with pytest.warns(UserWarning, match="no effect"):
        rescaled_to_mean_one(weight_N, float(weight_N.mean()), varies=True)
    rescaled_to_mean_one(torch.ones(3), 1.0, varies=False)  # uniform weights are no loss: a warning would raise here
