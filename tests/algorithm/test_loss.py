import pytest
import torch
from torch.distributions import Normal, kl_divergence

from flash_grpo.algorithm.loss import clipped_surrogate, gaussian_kl

CLIP = 1e-3


def surrogate(ratio, advantage, weight=1.0, **more):
    logp = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    terms = clipped_surrogate(
        logp, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage]), torch.tensor([weight]), CLIP, **more
    )
    terms.loss_N.sum().backward()
    return terms, logp.grad.item()


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_on_policy_the_gradient_is_minus_weight_times_advantage(advantage, weight):
    terms, gradient = surrogate(1.0, advantage, weight)
    assert gradient == pytest.approx(-weight * advantage)
    assert terms.loss_N.item() == pytest.approx(-weight * advantage)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.01, 1.0), (0.99, -1.0)])
def test_a_ratio_that_has_gone_far_enough_gets_no_gradient(ratio, advantage):
    terms, gradient = surrogate(ratio, advantage)
    assert gradient == 0 and terms.clipped_N.item()


@pytest.mark.parametrize(("ratio", "advantage"), [(1.01, -1.0), (0.99, 1.0)])
def test_a_ratio_that_went_the_wrong_way_keeps_its_gradient(ratio, advantage):
    _, gradient = surrogate(ratio, advantage)
    assert gradient == pytest.approx(-advantage * ratio)


def test_approx_kl_is_zero_on_policy_and_positive_off_it():
    assert surrogate(1.0, 1.0)[0].approx_kl_N.item() == 0
    assert surrogate(1.1, 1.0)[0].approx_kl_N.item() > 0 and surrogate(0.9, 1.0)[0].approx_kl_N.item() > 0


def test_the_kl_to_the_base_is_added_with_its_weight():
    terms, _ = surrogate(1.0, 1.0, base_kl_N=torch.tensor([0.5]), kl_weight=0.1)
    assert terms.loss_N.item() == pytest.approx(-1 + 0.05)


def test_the_gaussian_kl_is_torchs_averaged_over_elements():
    mean, base, std_N = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([0.3, 0.8])
    scale = std_N[:, None, None]
    expected = kl_divergence(Normal(mean, scale), Normal(base, scale)).mean((1, 2))
    torch.testing.assert_close(gaussian_kl(mean, base, std_N), expected)
