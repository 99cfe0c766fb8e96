import math

import pytest
import torch

from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.algorithm.sde import log_prob, ode_step, rectification_factor, sde_mean

PUBLISHED_INVERSE = [7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754]


def _step(schedule):
    """Return what a stochastic step is made of: x_factor_T, v_factor_T, dt_T, noise_std_T."""
    return schedule.x_factor_T, schedule.v_factor_T, schedule.dt_T, schedule.noise_std_T


def test_the_formula_gives_the_ten_published_rectification_weights():
    inverse = 1 / rectification_factor(flow_schedule(20))[:10]
    torch.testing.assert_close(inverse, torch.tensor(PUBLISHED_INVERSE), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("noise", "candidates", "spread"), [("linear", 10, 1.98), ("linear", 20, 21.8), ("flow", 10, 8.4)]
)
def test_lambda_spreads_over_the_candidate_steps_as_reported(noise, candidates, spread):
    factor = rectification_factor(flow_schedule(20, noise=noise, noise_level=1.0))[:candidates]
    assert (factor.max() / factor.min()).item() == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("noise", ["linear", "flow"])
def test_lambda_is_the_papers_formula(noise):
    schedule = flow_schedule(20, noise=noise)
    sigma, dt = schedule.sigma_S[:-1], schedule.dt_T
    std = schedule.noise_std_T / (-dt).sqrt()
    formula = (-dt).sqrt() / std + std * (-dt).sqrt() * (1 - sigma) / (2 * sigma)
    torch.testing.assert_close(rectification_factor(schedule), formula)


@pytest.mark.parametrize("noise", ["linear", "flow", "cps"])
@pytest.mark.parametrize("step", [0, 5, 12, 18])
def test_the_gradient_of_log_prob_with_respect_to_v_is_lambda_times_noise_over_d(noise, step):
    schedule = flow_schedule(20, noise=noise)
    x_factor, v_factor, dt, noise_std = (value[step].double() for value in _step(schedule))
    generator = torch.Generator().manual_seed(step)
    x, noise_drawn = (torch.randn(1, 4, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 4, 2, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    mean = sde_mean(x, v, x_factor, v_factor, dt)
    x_next = (mean + noise_std * noise_drawn).detach()
    log_prob(x_next, mean, noise_std).sum().backward()
    expected = rectification_factor(schedule)[step].double() * noise_drawn.abs() / x.numel()
    torch.testing.assert_close(v.grad.abs(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("noise", ["linear", "flow", "cps"])
def test_the_sde_step_without_noise_is_the_euler_step(noise):
    schedule = flow_schedule(20, noise=noise, noise_level=1e-4)
    x, v = torch.randn(20, 4, 5), torch.randn(20, 4, 5)
    x_factor_T, v_factor_T, dt_T, _ = _step(schedule)
    torch.testing.assert_close(sde_mean(x, v, x_factor_T, v_factor_T, dt_T), ode_step(x, v, dt_T), atol=1e-6, rtol=0)


@pytest.mark.parametrize("noise", ["linear", "flow"])
def test_the_sde_keeps_the_marginals_of_the_ode_on_gaussian_data(noise):
    """Data N(0, 1): x_sigma has variance (1-s)² + s², and its velocity field is known. Many small steps keep the variance."""
    torch.manual_seed(0)
    schedule = flow_schedule(400, shift=1.0, noise=noise)
    x = torch.randn(20_000, 1)
    for step in range(100, 300):
        sigma = schedule.sigma_S[step]
        x_factor, v_factor, dt, noise_std = (value[step] for value in _step(schedule))
        if step == 100:
            x = x * ((1 - sigma) ** 2 + sigma**2).sqrt()
        v = x * (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)
        x = sde_mean(x, v, x_factor, v_factor, dt) + noise_std * torch.randn_like(x)
    sigma = schedule.sigma_S[300]
    assert x.var().item() == pytest.approx(float((1 - sigma) ** 2 + sigma**2), rel=0.04)


def test_log_prob_is_the_normal_density_averaged_over_elements():
    x_next, mean, noise_std = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([0.1, 0.3])
    expected = torch.distributions.Normal(mean, noise_std[:, None, None]).log_prob(x_next).mean((1, 2))
    torch.testing.assert_close(log_prob(x_next, mean, noise_std), expected)


def test_log_prob_of_the_mean_is_the_constant():
    mean = torch.zeros(1, 8)
    assert log_prob(mean, mean, 1.0).item() == pytest.approx(-0.5 * math.log(2 * math.pi))


def test_a_batch_of_steps_equals_the_steps_one_by_one():
    schedule = flow_schedule(20)
    step_N = torch.tensor([0, 7, 13])
    x, v = torch.randn(3, 2, 2), torch.randn(3, 2, 2)
    together = sde_mean(x, v, *(value[step_N] for value in _step(schedule)[:3]))
    for row, step in enumerate(step_N):
        alone = sde_mean(x[row : row + 1], v[row : row + 1], *(value[step] for value in _step(schedule)[:3]))
        torch.testing.assert_close(together[row : row + 1], alone)


def test_flow_cps_predicts_data_and_noise_and_renews_a_part_of_the_noise():
    """Its authors' formula: (1-σ')·x̂_0 + σ'·cos(η·π/2)·ε̂, and fresh noise of std σ'·sin(η·π/2)."""
    schedule, angle = flow_schedule(20, noise="cps"), 0.8 * math.pi / 2
    x, v = torch.randn(20, 4, 5), torch.randn(20, 4, 5)
    sigma, following = schedule.sigma_S[:-1, None, None], schedule.sigma_S[1:, None, None]
    data, noise = x - sigma * v, x + (1 - sigma) * v
    expected = (1 - following) * data + following * math.cos(angle) * noise
    torch.testing.assert_close(sde_mean(x, v, *_step(schedule)[:3]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.noise_std_T, following[:, 0, 0] * math.sin(angle))


def test_flow_cps_keeps_the_schedules_noise():
    """With the exact velocity of one datum and of its noise, x stays (1-σ)·data + noise of std σ, step by step."""
    torch.manual_seed(0)
    schedule, data = flow_schedule(20, noise="cps"), 3.0
    noise = torch.randn(100_000, 1)
    x = (1 - schedule.sigma_S[0]) * data + schedule.sigma_S[0] * noise
    for step in range(20):
        sigma = schedule.sigma_S[step]
        v = (x - (1 - sigma) * data) / sigma - data  # noise - data
        x_factor, v_factor, dt, noise_std = (value[step] for value in _step(schedule))
        x = sde_mean(x, v, x_factor, v_factor, dt) + noise_std * torch.randn_like(x)
        following = float(schedule.sigma_S[step + 1])
        assert x.std().item() == pytest.approx(following, rel=0.01)
        assert x.mean().item() == pytest.approx((1 - following) * data, abs=0.02)
