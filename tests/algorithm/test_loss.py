import pytest
import torch
from torch.distributions import Normal, kl_divergence

from flash_grpo.algorithm.loss import clipped_surrogate, gaussian_kl, with_kl, without_ratio

CLIP = 1e-3


def surrogate(ratio, advantage, weight=1.0, clip=CLIP):
    logp = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    terms = clipped_surrogate(
        logp, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage]), torch.tensor([weight]), clip
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
    terms = with_kl(surrogate(1.0, 1.0)[0], torch.tensor([0.5]), 0.1)
    assert (terms.loss_N.item(), terms.base_kl_N.item()) == pytest.approx((-1 + 0.05, 0.5))


def test_without_a_clip_every_ratio_keeps_its_gradient():
    terms, gradient = surrogate(3.0, 1.0, clip=None)
    assert gradient == pytest.approx(-3) and not terms.clipped_N.item()


def test_a_loss_without_a_ratio_counts_as_on_policy():
    terms = without_ratio(torch.tensor([2.0, -1.0], requires_grad=True))
    assert (terms.ratio_N.tolist(), terms.clipped_N.tolist(), terms.approx_kl_N.tolist()) == (
        [1, 1],
        [False] * 2,
        [0, 0],
    )
    assert terms.loss_N.requires_grad


def test_the_gaussian_kl_is_torchs_averaged_over_elements():
    mean, base, std_N = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([0.3, 0.8])
    scale = std_N[:, None, None]
    expected = kl_divergence(Normal(mean, scale), Normal(base, scale)).mean((1, 2))
    torch.testing.assert_close(gaussian_kl(mean, base, std_N), expected)
