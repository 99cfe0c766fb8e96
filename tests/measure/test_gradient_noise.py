"""Signal and noise of gradients whose true signal and noise are known."""

import math

import pytest
import torch

from flash_grpo.measure.gradient_noise import GradientNoise, gradient_noise

SIZE, PROMPTS, GROUP = 300, 4, 8


def _gradients(seed: int, halves: int, signal: float, of_prompts: float, of_rollouts: float):
    """Two gradients of each half: |G|² is signal, and so are A and W of_prompts and of_rollouts; [2·halves, SIZE], halves."""
    draw = torch.Generator().manual_seed(seed)

    def noise(variance: float, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, SIZE, generator=draw) * (variance / SIZE / (PROMPTS / 2)) ** 0.5

    true = torch.full((SIZE,), (signal / SIZE) ** 0.5)
    g_UD = true + noise(of_prompts, halves, 1) + noise(of_rollouts, halves, 2)
    return g_UD.flatten(0, 1), [half for half in range(halves) for _ in (0, 1)]


def _estimated(seed: int, halves: int, *parts: float) -> GradientNoise:
    g_M, half_M = _gradients(seed, halves, *parts)
    return gradient_noise(g_M @ g_M.T, half_M, PROMPTS, GROUP)


def test_signal_prompts_and_rollouts_are_told_apart_without_bias():
    found = [_estimated(seed, 12, 1.0, 4.0, 20.0) for seed in range(200)]
    for name, true in (("signal", 1.0), ("of_prompts", 4.0), ("of_rollouts", 20.0)):
        value = torch.tensor([getattr(one, name) for one in found])
        assert abs(value.mean() - true) < 3 * value.std() / 200**0.5
    errors = torch.tensor([one.signal_error for one in found])
    signals = torch.tensor([one.signal for one in found])
    assert 1 <= float(errors.mean() / signals.std()) < 1.4  # a jackknife of products of noise errs on the safe side


def test_a_signal_is_seldom_found_where_there_is_none():
    found = [_estimated(seed, 16, 0.0, 1.0, 20.0).resolved for seed in range(300)]
    assert sum(found) <= 0.05 * 300
    assert all(_estimated(seed, 16, 2.0, 1.0, 20.0).resolved for seed in range(50))


def test_two_halves_of_a_batch_give_the_estimator_of_the_source():
    """McCandlish et al. 2018, appendix A.1: |G|² from the gradients' squared norms at a small and a big batch."""
    g_1, g_2 = _gradients(0, 2, 1.0, 1.0, 4.0)[0][::2].double()
    small, big = PROMPTS / 2, PROMPTS
    norm_small, norm_big = (g_1.square().sum() + g_2.square().sum()) / 2, ((g_1 + g_2) / 2).square().sum()
    assert float((big * norm_big - small * norm_small) / (big - small)) == pytest.approx(float(g_1 @ g_2))


def test_the_critical_batch_has_as_much_signal_as_noise():
    noise = GradientNoise(signal=0.5, of_prompts=4.0, of_rollouts=14.0, num_prompts=4, group_size=8)
    assert noise.critical_prompts(8) == pytest.approx(36)
    assert noise.ratio == pytest.approx(4 / 36)
    assert noise.critical_prompts(15) == pytest.approx((4 + 7) / 0.5)
    assert noise.ratio_at(15) == pytest.approx(0.5 * 4 / 11)
    assert noise.cosine == pytest.approx(0.5 / (0.5 + 18 / 2))
    assert noise.norm == pytest.approx((0.5 + 18 / 4) ** 0.5)


def test_without_any_gradient_there_is_neither_signal_nor_noise():
    noise = gradient_noise(torch.zeros(6, 6), [0, 0, 1, 1, 2, 2], 4, 8)
    assert (noise.signal, noise.resolved, noise.norm) == (0, False, 0)
    assert math.isnan(noise.ratio) and math.isnan(noise.cosine) and noise.critical_prompts(8) == math.inf


def test_two_halves_have_no_error():
    with pytest.raises(ValueError, match="at least 3"):
        gradient_noise(torch.eye(4), [0, 0, 1, 1], 4, 8)
