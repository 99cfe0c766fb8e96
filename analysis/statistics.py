"""Compute statistics of arrays with seeds as rows, in pure functions. Shapes: S seeds, G grid points, R resamples.

Intervals are percentile bootstraps over seeds, widened for small n (Hesterberg 2015, "expanded"). With eight seeds the plain
95 % percentile intervals cover only 90 %, the widened ones 95 % (a test simulates both). Below seven seeds there are too few
distinct resamples, and Student's t is used; below three there is no interval. An estimate's p comes from a t test;
`significance` has a test that assumes no distribution.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

RESAMPLES, LEVEL = 10_000, 0.95
SMALLEST_N, BOOTSTRAP_N = 3, 7


@dataclass(frozen=True)
class Estimate:
    """An estimated number with its 95 % interval, NaN if there is none.

    n: how many seeds. p: two-sided, for the hypothesis that the number is 0. points: the seeds' values, if n < 3.
    signed: True for differences, which are written with their sign.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    p: float = np.nan
    points: tuple[float, ...] = ()
    signed: bool = False

    @property
    def resolved(self) -> bool:
        """Return True if there is an interval and it excludes 0."""
        return bool(self.low > 0 or self.high < 0)

    def text(self, digits: int = 2) -> str:
        """Format as `2.05 [1.98, 2.12]`, or for n < 3, with the seeds' values, as `2.05 (1.98, 2.12)`."""
        if not np.isfinite(self.value):
            return "–"
        form = f"{{:{'+' if self.signed else ''}.{digits}f}}"
        if np.isfinite(self.low):
            return f"{form} [{form}, {form}]".format(self.value, self.low, self.high)
        points = f" ({', '.join(form.format(point) for point in self.points)})" if len(self.points) > 1 else ""
        return form.format(self.value) + points


NOTHING = Estimate(np.nan)


@functools.lru_cache(maxsize=32)
def resampling_weights(n: int, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return how often each of n seeds is drawn in each resample, divided by n: [R, S], rows sum to 1."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=resamples) / n


def tails(n: int) -> tuple[float, float]:
    """Return the percentiles that bound the interval: Phi(∓sqrt(n / (n - 1)) t) instead of 2.5 and 97.5 %."""
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return tail, 1 - tail


def mean_interval(values_SG: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % interval of the mean over seeds, for each column; NaN if n < 3."""
    n, columns = values_SG.shape
    if n < SMALLEST_N:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    if n < BOOTSTRAP_N:
        mean_G, margin_G = values_SG.mean(0), stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(values_SG)
        return mean_G - margin_G, mean_G + margin_G
    low_G, high_G = np.quantile(resampling_weights(n, seed) @ values_SG, tails(n), axis=0)
    return low_G, high_G


def mean_estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Estimate the mean over seeds; missing values (NaN) do not count. For a paired difference, pass the differences."""
    values = _finite(values)
    n = len(values)
    if n < SMALLEST_N:
        return Estimate(float(values.mean()), n=n, points=tuple(values.tolist())) if n else NOTHING
    [low], [high] = mean_interval(values[:, None], seed)
    return Estimate(float(values.mean()), float(low), float(high), n, _p_value(values.mean(), stats.sem(values), n))


def correlation_estimate(correlations: Sequence[float], seed: int = 0) -> Estimate:
    """Estimate the mean of numbers between -1 and 1 on Fisher's scale, arctanh, so that the interval cannot leave [-1, 1].

    The value is the mean transformed back, and p is for the hypothesis that it is 0.
    """
    z = mean_estimate(fisher_z(correlations), seed)
    low, value, high = np.tanh([z.low, z.value, z.high]).tolist()
    return replace(z, value=value, low=low, high=high, points=tuple(np.tanh(z.points).tolist()))


def fisher_z(correlations: Sequence[float]) -> np.ndarray:
    """Return arctanh; a correlation that rounding made exactly 1 counts as the next smaller number."""
    largest = np.nextafter(1.0, 0.0)
    return np.arctanh(np.clip(np.asarray(correlations, dtype=float), -largest, largest))


def contrast_estimate(groups: Sequence[Sequence[float]], weights: Sequence[float], seed: int = 0) -> Estimate:
    """Estimate a weighted sum of the means of independent groups; every group (stratum) is resampled separately."""
    groups = [_finite(group) for group in groups]
    n = min(len(group) for group in groups)
    if n == 0:
        return NOTHING
    value = float(np.dot(weights, [group.mean() for group in groups]))
    if n < SMALLEST_N:
        return Estimate(value, n=n)
    error = np.linalg.norm(np.multiply(weights, [stats.sem(group) for group in groups]))
    margin = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    low, high = value - margin, value + margin
    if n >= BOOTSTRAP_N:
        draws = [resampling_weights(len(group), seed + stratum) @ group for stratum, group in enumerate(groups)]
        low, high = np.quantile(np.tensordot(weights, draws, axes=1), tails(n))
    return Estimate(value, float(low), float(high), n, _p_value(value, error, n))


def _p_value(value: float, error: float, n: int) -> float:
    """Return the two-sided p of a t test against 0 with n - 1 degrees of freedom."""
    if error == 0:
        return float(value == 0)
    return float(2 * stats.t.sf(abs(value / error), n - 1))


def _finite(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]


def interquartile_mean(values_S: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean of the middle half of the seeds (Agarwal et al. 2021, rliable)."""
    return stats.trim_mean(values_S, 0.25, axis=axis)


def bootstrap_estimate(values: Sequence[float], statistic: Callable[..., np.ndarray], seed: int = 0) -> Estimate:
    """Estimate any statistic of seeds. statistic: takes an array and `axis`. No interval below n = 7."""
    values = _finite(values)
    n = len(values)
    if n < BOOTSTRAP_N:
        return Estimate(float(statistic(values, axis=0)), n=n) if n else NOTHING
    index_RS = np.random.default_rng([seed, n]).integers(n, size=(RESAMPLES, n))
    low, high = np.quantile(statistic(values[index_RS], axis=1), tails(n))
    return Estimate(float(statistic(values, axis=0)), float(low), float(high), n)


def share_estimate(count: int, n: int) -> Estimate:
    """Estimate a share of n seeds, with its Wilson interval."""
    if n < SMALLEST_N:
        return Estimate(count / n if n else np.nan, n=n)
    interval = stats.binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / n, interval.low, interval.high, n)


def value_at(cost: np.ndarray, reward: np.ndarray, budget: float) -> float:
    """Return the curve's value at a budget, linear between evaluations; NaN beyond the last one (never extrapolated)."""
    return float(np.interp(budget, cost, reward, right=np.nan)) if len(cost) else np.nan


def area_under_curve(cost: np.ndarray, reward: np.ndarray, budget: float) -> float:
    """Return the curve's mean height from its first evaluation to the budget, in units of reward; NaN if it ends before."""
    end = value_at(cost, reward, budget)
    if not np.isfinite(end) or budget <= cost[0]:
        return np.nan
    inside = cost < budget
    area = np.trapezoid(np.append(reward[inside], end), np.append(cost[inside], budget))
    return float(area / (budget - cost[0]))


def time_to_target(cost: np.ndarray, reward: np.ndarray, target: float) -> tuple[float, bool]:
    """Return the cost at which the curve first reaches the target, interpolated, and True; if it never does, its end, False."""
    above = np.flatnonzero(reward >= target)
    if len(above) == 0:
        return float(cost[-1]), False
    first = above[0]
    if first == 0:
        return float(cost[0]), True
    share = (target - reward[first - 1]) / (reward[first] - reward[first - 1])
    return float(cost[first - 1] + share * (cost[first] - cost[first - 1])), True


def restricted_mean(
    times: np.ndarray, reached: np.ndarray, horizon: float, counts_RS: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean cost to the target up to the horizon: the area under the Kaplan-Meier curve of censored times, [R].

    counts_RS: how often each seed counts in each resample; default: one row of ones. Times are right-censored. If the last
    run was censored before the horizon, the curve stays level after it.
    """
    counts_RS = np.ones((1, len(times)), int) if counts_RS is None else counts_RS
    order = np.lexsort((~reached, times))
    events_S, counts_RS = (reached & (times <= horizon))[order], counts_RS[:, order]
    at_risk_RS = np.cumsum(counts_RS[:, ::-1], axis=1)[:, ::-1]
    survival_RS = np.cumprod(1 - events_S * counts_RS / np.maximum(at_risk_RS, 1), axis=1)
    gaps = np.diff(np.concatenate([[0.0], np.minimum(times[order], horizon), [horizon]]))
    return gaps[0] + survival_RS @ gaps[1:]


def restricted_mean_estimate(
    times: Sequence[float], reached: Sequence[bool], horizon: float, seed: int = 0
) -> Estimate:
    """Estimate `restricted_mean` with an interval; without censoring before the horizon it is a mean of min(time, horizon)."""
    times, reached = np.asarray(times, dtype=float), np.asarray(reached, dtype=bool)
    n = len(times)
    if not np.any(~reached & (times < horizon)):
        return mean_estimate(np.where(reached, np.minimum(times, horizon), horizon), seed=seed)
    value = float(restricted_mean(times, reached, horizon)[0])
    if n < BOOTSTRAP_N:
        return Estimate(value, n=n)
    means = restricted_mean(times, reached, horizon, np.rint(resampling_weights(n, seed) * n).astype(int))
    low, high = np.quantile(means, tails(n))
    return Estimate(value, float(low), float(high), n)
