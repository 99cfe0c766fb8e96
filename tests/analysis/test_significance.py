"""The tests agree with hand counts, with scipy and with what they promise on simulated studies."""

import numpy as np
import pytest
from scipy import stats

from analysis.significance import holm, sign_flip_p, smallest_detectable_effect

SIMULATIONS = 2000


def test_holm_agrees_with_the_worked_example_and_skips_missing_tests():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.01, np.nan, 0.04])
    np.testing.assert_allclose(adjusted[[0, 2]], [0.02, 0.04])
    assert np.isnan(adjusted[1])
    assert holm([0.9, 0.8]).max() == 1.0


def test_holm_rejects_a_true_null_in_at_most_5_of_100_families():
    random = np.random.default_rng(0)
    values = random.normal(size=(1500, 6, 8))
    rejected = [(holm(stats.ttest_1samp(family, 0, axis=1).pvalue) < 0.05).any() for family in values]
    assert np.mean(rejected) < 0.065


@pytest.mark.parametrize("n", [4, 8, 30])
def test_the_smallest_detectable_effect_is_found_four_times_in_five(n):
    random = np.random.default_rng(n)
    unit = np.resize([-1.0, 1.0], n)
    effect = smallest_detectable_effect(unit) / unit.std(ddof=1)
    rejections = stats.ttest_1samp(random.normal(effect, 1, size=(n, 4000)), 0).pvalue < 0.05
    assert np.mean(rejections) == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # of the 8 sums only +6 and -6 are as far from 0
        ([1.0, 2.0, -0.5], 4 / 8),  # |sums| 3.5, 2.5, 1.5, 0.5, twice each; 2.5 is observed
        ([1.0, -1.0, 1.0], 1.0),  # |sums| 3 twice and 1 six times; 1 is observed
        ([1.0] * 8, 2 / 2**8),
    ],
)
def test_the_sign_flip_test_counts_all_flips_where_a_hand_can(differences, p):
    assert sign_flip_p(np.array(differences)[:, None]) == pytest.approx(p)


@pytest.mark.parametrize(("n", "apart"), [(12, 0.05), (32, 0.01)])  # 12: all flips; 32: a million draws
def test_the_sign_flip_test_is_near_the_t_test_on_normal_data(n, apart):
    values_SG = np.random.default_rng(n).normal(0.4, 1.0, size=(n, 40))
    t = stats.ttest_1samp(values_SG, 0).pvalue
    assert t.min() < 0.01 and t.max() > 0.5
    np.testing.assert_allclose(sign_flip_p(values_SG), t, atol=apart)


def test_the_sign_flip_test_rejects_a_true_null_in_5_of_100_studies_also_of_skewed_twins():
    random = np.random.default_rng(1)
    values_SG = random.exponential(size=(12, SIMULATIONS)) * random.choice([-1.0, 1.0], size=(12, SIMULATIONS))
    assert np.mean(sign_flip_p(values_SG) < 0.05) == pytest.approx(0.05, abs=0.012)


def test_a_drawn_sign_flip_test_repeats_itself_and_is_never_0():
    values_SG = np.random.default_rng(0).normal(3.0, 0.1, size=(24, 2))
    first = sign_flip_p(values_SG)
    assert (first == sign_flip_p(values_SG)).all()
    assert 0 < first.max() < 1e-5
    assert first[0] == sign_flip_p(values_SG[:, :1])[0]
