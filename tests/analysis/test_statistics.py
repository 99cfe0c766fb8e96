"""Each statistic is right on numbers whose answer is known; intervals cover what they say."""

import numpy as np
import pytest
from scipy import stats

from analysis import statistics
from analysis.statistics import (
    Estimate,
    area_under_curve,
    bootstrap_estimate,
    contrast_estimate,
    correlation_estimate,
    interquartile_mean,
    mean_estimate,
    mean_interval,
    restricted_mean,
    restricted_mean_estimate,
    share_estimate,
    time_to_target,
    value_at,
)

SIMULATIONS = 2000


@pytest.mark.parametrize("n", [3, 6, 7, 8, 16])
def test_the_interval_of_a_mean_covers_it_in_93_to_97_of_100_studies(n):
    values_SG = np.random.default_rng(n).normal(2.0, 0.3, size=(n, SIMULATIONS))
    low, high = mean_interval(values_SG)
    assert 0.93 < np.mean((low <= 2.0) & (high >= 2.0)) < 0.97


def test_plain_percentiles_would_cover_too_little_at_eight_seeds():
    values_SG = np.random.default_rng(8).normal(size=(8, SIMULATIONS))
    low, high = np.quantile(statistics.resampling_weights(8) @ values_SG, [0.025, 0.975], axis=0)
    assert np.mean((low <= 0) & (high >= 0)) < 0.92


def test_the_interval_of_a_stratified_contrast_covers_it_in_93_to_97_of_100_studies():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(600):
        groups = [random.normal(1.0, 0.2, 8), random.normal(0.4, 0.3, 8)]
        estimate = contrast_estimate(groups, [1, -1])
        covered.append(estimate.low <= 0.6 <= estimate.high)
    assert 0.93 < np.mean(covered) < 0.975


def test_the_interval_of_an_interquartile_mean_covers_at_least_what_it_says():
    values = np.random.default_rng(3).normal(size=(300, 8))
    estimates = [bootstrap_estimate(row, interquartile_mean) for row in values]
    assert np.mean([item.low <= 0 <= item.high for item in estimates]) > 0.93


def test_a_paired_difference_is_narrower_than_an_unpaired_one_where_seeds_correlate():
    random = np.random.default_rng(0)
    shared = random.normal(size=8)
    a, b = shared + 0.5 + 0.05 * random.normal(size=8), shared
    paired, unpaired = mean_estimate(a - b), contrast_estimate([a, b], [1, -1])
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)
    assert paired.resolved
    assert not unpaired.resolved


def test_the_same_values_always_give_the_same_interval():
    values = np.random.default_rng(0).normal(size=9)
    assert mean_estimate(values) == mean_estimate(values.tolist())


def test_missing_values_do_not_count_as_seeds():
    assert mean_estimate([1.0, np.nan, 2.0, 3.0]).n == 3
    assert mean_estimate([np.nan]).n == 0


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0]])
def test_below_three_seeds_there_are_points_and_no_interval(values):
    estimate = mean_estimate(values)
    assert estimate.points == tuple(values)
    assert np.isnan(estimate.low)
    assert not estimate.resolved
    assert "[" not in estimate.text()
    assert np.isnan(mean_interval(np.array(values)[:, None])[0]).all()


def test_an_estimate_reads_as_value_interval_or_points():
    assert Estimate(2.0512, 1.981, 2.119, 8).text() == "2.05 [1.98, 2.12]"
    assert Estimate(0.5, -0.25, 1.0, 8, signed=True).text() == "+0.50 [-0.25, +1.00]"
    assert mean_estimate([1.0, 2.0]).text(1) == "1.5 (1.0, 2.0)"
    assert Estimate(np.nan).text() == "–"


def test_identical_seeds_give_an_interval_of_width_zero():
    estimate = mean_estimate([1.5] * 8)
    assert (estimate.low, estimate.high) == (1.5, 1.5)


def test_the_p_value_is_the_paired_t_tests():
    values = np.random.default_rng(0).normal(0.3, 1, size=8)
    assert mean_estimate(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_the_interquartile_mean_ignores_outliers():
    assert interquartile_mean(np.array([1.0, 2, 3, 4, 5, 6, 7, 1000])) == pytest.approx(4.5)


def test_a_share_carries_wilsons_interval():
    estimate = share_estimate(2, 8)
    assert (estimate.value, estimate.n) == (0.25, 8)
    assert (round(estimate.low, 3), round(estimate.high, 3)) == (0.071, 0.591)


def test_a_curve_at_a_budget_is_linear_between_evaluations_and_never_extrapolated():
    cost, reward = np.array([0.0, 10, 20]), np.array([1.0, 2.0, 2.0])
    assert value_at(cost, reward, 5) == 1.5
    assert np.isnan(value_at(cost, reward, 21))


def test_the_area_under_a_curve_is_its_mean_height_up_to_the_budget():
    cost, reward = np.array([0.0, 10, 20]), np.array([0.0, 1.0, 1.0])
    assert area_under_curve(cost, reward, 10) == pytest.approx(0.5)
    assert area_under_curve(cost, reward, 15) == pytest.approx((5 + 5) / 15)
    assert np.isnan(area_under_curve(cost, reward, 25))


def test_the_cost_to_a_target_is_interpolated_and_censored_where_it_is_never_reached():
    cost, reward = np.array([0.0, 10, 20]), np.array([0.0, 1.0, 2.0])
    assert time_to_target(cost, reward, 1.5) == (15.0, True)
    assert time_to_target(cost, reward, 3.0) == (20.0, False)
    assert time_to_target(cost, reward, -1.0) == (0.0, True)


def test_the_restricted_mean_is_the_area_under_scipys_kaplan_meier_curve():
    random = np.random.default_rng(0)
    times, reached = random.exponential(10, 30).round(1), random.random(30) < 0.6
    horizon = 15.0
    events = reached & (times <= horizon)
    capped = np.minimum(times, horizon)
    survival = stats.ecdf(stats.CensoredData(uncensored=capped[events], right=capped[~events])).sf
    grid = np.linspace(0, horizon, 200_001)[:-1]
    assert restricted_mean(times, reached, horizon)[0] == pytest.approx(
        survival.evaluate(grid).mean() * horizon, rel=1e-3
    )


def test_a_run_that_never_reached_the_target_counts_as_the_horizon_and_is_not_dropped():
    times = np.array([5.0, 6, 7, 8, 20, 20, 20])
    reached = np.array([True] * 4 + [False] * 3)
    estimate = restricted_mean_estimate(times, reached, 20.0)
    assert estimate.n == 7
    assert estimate.value == pytest.approx(times.mean())
    assert estimate.high <= 20.0


def test_a_run_that_ended_early_without_the_target_is_censored_there():
    times, reached = np.array([4.0, 2.0, 6.0]), np.array([True, False, True])
    # Kaplan-Meier by hand: level 1 to 4 (of 2 at risk one leaves), 1/2 to 6, then 0.
    assert restricted_mean(times, reached, 10.0)[0] == pytest.approx(4 + 0.5 * 2)
    dropped = times[reached].mean()
    early = np.array([4.0, 2.0, 6.0, 9.0, 2.0, 3.0, 3.0])
    ended = np.array([True, False, True, True, False, False, False])
    estimate = restricted_mean_estimate(early, ended, 10.0)
    assert estimate.value > dropped
    assert estimate.low <= estimate.value <= estimate.high <= 10.0


def test_an_interval_of_correlations_never_passes_1():
    correlations = [0.995, 0.98, 0.87, 0.99]
    plain, estimate = mean_estimate(correlations), correlation_estimate(correlations)
    assert plain.high > 1 > estimate.high > estimate.value > estimate.low > 0.6
    z = np.arctanh(correlations)
    margin = stats.t.ppf(0.975, 3) * stats.sem(z)
    np.testing.assert_allclose(
        [estimate.low, estimate.value, estimate.high], np.tanh(z.mean() + np.array([-1, 0, 1]) * margin)
    )
    assert correlation_estimate([1.0, 1.0, 1.0]).n == 3


def test_without_an_interval_the_correlations_are_shown_as_they_are():
    np.testing.assert_allclose(correlation_estimate([0.2, 0.4]).points, [0.2, 0.4])
    assert np.isnan(correlation_estimate([]).value)
