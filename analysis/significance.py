"""Test hypotheses: sign flips beside the t test, Holm's correction, and the effect that a t test would have found."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from analysis.statistics import SMALLEST_N

SIGN_FLIPS, FLIPS_AT_ONCE = 1_000_000, 2_000


def sign_flip_p(differences_SG: np.ndarray) -> np.ndarray:
    """Return, for each column, the two-sided p of a sign-flip test: that each seed's difference is symmetric around 0.

    p is the share of sign flips whose mean is at least as far from 0. Up to 19 seeds all 2^n flips are made; beyond, a
    million with a fixed seed, the same for every column, and the observed signs count as one of them.
    """
    tested = stats.permutation_test(
        (differences_SG,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS,
        batch=FLIPS_AT_ONCE,
        rng=np.random.default_rng(0),
    )
    return np.asarray(tested.pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct p-values over one family of comparisons by Holm's step-down method; NaN (no test) stays NaN, uncounted."""
    p_values = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def smallest_detectable_effect(differences: Sequence[float], power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the mean difference that a two-sided paired t test finds with this power at this n and spread (noncentral t)."""
    differences = np.asarray(differences, dtype=float)
    differences = differences[np.isfinite(differences)]
    n = len(differences)
    if n < SMALLEST_N:
        return np.nan
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    noncentrality = optimize.brentq(lambda shift: stats.nct.sf(critical, n - 1, shift) - power, 0, 30)
    return float(noncentrality / np.sqrt(n) * differences.std(ddof=1))
