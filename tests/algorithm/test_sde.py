import math

import pytest
import torch

from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.algorithm.sde import log_prob, ode_step, rectification_factor, sde_mean, sde_noise_std

PUBLISHED_INVERSE = [7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754]


def test_the_formula_gives_the_ten_published_rectification_weights():
    inverse = 1 / rectification_factor(flow_schedule(20))[:10]
    torch.testing.assert_close(inverse, torch.tensor(PUBLISHED_INVERSE), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("noise", "candidates", "spread"), [("linear", 10, 1.98), ("linear", 20, 21.8), ("flow", 10, 41)]
)
def test_lambda_spreads_over_the_candidate_steps_as_reported(noise, candidates, spread):
    factor = rectification_factor(flow_schedule(20, noise=noise))[:candidates]
    assert (factor.max() / factor.min()).item() == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("noise", ["linear", "flow"])
@pytest.mark.parametrize("step", [0, 5, 12, 18])
def test_the_gradient_of_log_prob_with_respect_to_v_is_lambda_times_noise_over_d(noise, step):
    schedule = flow_schedule(20, noise=noise)
    sigma, std, dt = (t[step].double() for t in (schedule.sigma_S, schedule.std_T, schedule.dt_T))
    generator = torch.Generator().manual_seed(step)
    x, noise_drawn = (torch.randn(1, 4, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 4, 2, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    mean = sde_mean(x, v, sigma, std, dt)
    x_next = (mean + sde_noise_std(std, dt) * noise_drawn).detach()
    log_prob(x_next, mean, std, dt).sum().backward()
    expected = rectification_factor(schedule)[step].double() * noise_drawn.abs() / x.numel()
    torch.testing.assert_close(v.grad.abs(), expected, rtol=1e-5, atol=0)


def test_the_sde_step_without_noise_is_the_euler_step():
    x, v = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    mean = sde_mean(x, v, sigma=0.7, std=1e-9, dt=-0.05)
    torch.testing.assert_close(mean, ode_step(x, v, -0.05), atol=1e-6, rtol=0)


def test_the_sde_keeps_the_marginals_of_the_ode_on_gaussian_data():
    """Data N(0, 1): x_sigma has variance (1-s)² + s², and its velocity field is known. Many small steps keep the variance."""
    torch.manual_seed(0)
    schedule = flow_schedule(400, shift=1.0)
    x = torch.randn(20_000, 1)
    for step in range(100, 300):
        sigma, std, dt = schedule.sigma_S[step], schedule.std_T[step], schedule.dt_T[step]
        if step == 100:
            x = x * ((1 - sigma) ** 2 + sigma**2).sqrt()
        v = x * (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)
        x = sde_mean(x, v, sigma, std, dt) + sde_noise_std(std, dt) * torch.randn_like(x)
    sigma = schedule.sigma_S[300]
    assert x.var().item() == pytest.approx(float((1 - sigma) ** 2 + sigma**2), rel=0.04)


def test_log_prob_is_the_normal_density_averaged_over_elements():
    x_next, mean, std, dt = (
        torch.randn(2, 3, 4),
        torch.randn(2, 3, 4),
        torch.tensor([0.5, 0.9]),
        torch.tensor([-0.04, -0.1]),
    )
    scale = (std * (-dt).sqrt())[:, None, None]
    expected = torch.distributions.Normal(mean, scale).log_prob(x_next).mean((1, 2))
    torch.testing.assert_close(log_prob(x_next, mean, std, dt), expected)


def test_log_prob_of_the_mean_is_the_constant():
    mean = torch.zeros(1, 8)
    assert log_prob(mean, mean, 1.0, -1.0).item() == pytest.approx(-0.5 * math.log(2 * math.pi))


def test_a_batch_of_steps_equals_the_steps_one_by_one():
    schedule = flow_schedule(20)
    step_N = torch.tensor([0, 7, 13])
    x, v = torch.randn(3, 2, 2), torch.randn(3, 2, 2)
    together = sde_mean(x, v, schedule.sigma_S[step_N], schedule.std_T[step_N], schedule.dt_T[step_N])
    for row, step in enumerate(step_N):
        alone = sde_mean(
            x[row : row + 1], v[row : row + 1], schedule.sigma_S[step], schedule.std_T[step], schedule.dt_T[step]
        )
        torch.testing.assert_close(together[row : row + 1], alone)
