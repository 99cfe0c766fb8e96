"""The verdict table on synthetic studies with known answers: the rule, two tests, two sets of rates, two costs."""

import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_arms import TUNED, at, write_tuned
from test_artefacts import GAINS, measurements, row
from test_study import write_run, write_study

import analysis
from analysis import ablation, curves, mechanism, render, sections, significance, verdicts
from analysis.statistics import Estimate
from analysis.study import load_study

HERE = Path(analysis.__file__).parent
SEEDS = range(12)


def table_of(path, *more, cost="device_seconds") -> pd.DataFrame:
    study = load_study(path, *more)
    some, _ = mechanism.load_mechanism(study.paths)
    return verdicts.verdicts(study, curves.run_summaries(study, cost), some, cost)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    path = write_study(tmp_path_factory.mktemp("runs") / "known", seeds=SEEDS, gain=GAINS, spread=0.05)
    measurements(path, repeats=12)
    return path


def verdict_of(table: pd.DataFrame) -> list[str]:
    return [item for item in table["Verdict"] if not item.startswith("not tested")]


def test_claims_are_supported_or_contradicted_at_twelve_seeds(tmp_path, known):
    table = table_of(known)
    assert verdict_of(table) == ["supported"] * 8
    assert set(table["n"]) == {12, 0}
    against = {**GAINS, "full": 3.0, "window": 0.5, "flash": 0.3, "no_rectification": 0.9, "no_iso_temporal": 0.1}
    write_study(tmp_path / "against", seeds=SEEDS, gain=against, spread=0.05)
    measurements(tmp_path / "against", noise=3.0, repeats=12)
    table = table_of(tmp_path / "against")
    assert row(table[table["n"] == 12], "Claim", "Iso-temporal grouping helps")["Verdict"] == "supported"
    assert verdict_of(table[table["Claim"] != "Iso-temporal grouping helps"]) == ["contradicted"] * 7


def test_an_sde_without_runs_for_a_claim_has_no_row_of_it(tmp_path):
    write_study(tmp_path / "linear", seeds=range(3), methods=("full", "flash", "window"))
    write_study(tmp_path / "flow", seeds=range(3), methods=("full", "flash"), noise="flow")
    table = table_of(tmp_path / "linear", tmp_path / "flow")
    noises = {claim: list(rows["SDE noise"]) for claim, rows in table.groupby("Claim")}
    assert noises["Flash ≥ full trajectory at equal cost"] == ["linear", "flow"] * 2
    assert noises["Flash ≥ Fast1 (window of one) at equal cost"] == ["linear"] * 2
    assert noises["λ predicts the gradient norm"] == ["linear", "flow"]  # has none anywhere: that is said


def test_below_twelve_seeds_every_row_is_an_interval_only_however_clear(tmp_path):
    write_study(tmp_path / "s", seeds=range(11), gain=GAINS, spread=0.01)
    measurements(tmp_path / "s", repeats=4)
    table = table_of(tmp_path / "s")
    assert verdict_of(table) == ["interval only, n = 11 < 12"] * 7 + ["interval only, n = 4 < 12"]
    assert table[["p (t, Holm)", "p (sign flips, Holm)"]].isna().all(axis=None)
    assert all(np.isfinite(item.low) for item in table["Estimate"] if item.n)


def test_two_seeds_are_two_values(tmp_path):
    table = table_of(write_study(tmp_path / "s", gain=GAINS, seeds=range(2)))
    assert verdict_of(table) == ["values only, n = 2 < 12"] * 7
    assert all(np.isnan(item.low) for item in table["Estimate"])


def test_an_effect_within_the_noise_is_not_resolved_and_says_what_could_have_been_seen(tmp_path):
    table = table_of(write_study(tmp_path / "s", seeds=SEEDS, gain=0.5, spread=0.3))
    itg = table[table["Claim"] == "Iso-temporal grouping helps"].iloc[0]
    assert re.match(r"not resolved at n = 12 \(smallest effect that could have been seen: 0\.\d+\)", itg["Verdict"])
    assert itg["Estimate"].low < 0 < itg["Estimate"].high
    assert row(table, "Claim", "λ predicts the gradient norm")["Verdict"].startswith("not tested")


@pytest.mark.parametrize(
    ("low", "p_t", "p_flips", "expected"),
    [
        (0.01, 0.03, 0.04, "supported"),
        (0.01, 0.03, 0.06, "not resolved"),
        (0.01, 0.06, 0.03, "not resolved"),
        (-0.01, 0.03, 0.04, "not resolved"),
    ],
)
def test_a_claim_needs_its_interval_and_both_tests(low, p_t, p_flips, expected):
    found = ablation.Effect(Estimate(0.1, low, 0.2, 12, 0.001), np.linspace(0.0, 0.2, 12), True)
    claim = verdicts.Claim(text="", noise="", measure="", side=1, found=found, shown=found.estimate)
    assert verdicts.verdict(claim, p_t, p_flips).startswith(expected)


def test_seeds_that_are_not_paired_are_an_interval_only(tmp_path):
    write_study(tmp_path / "s", ["flash"], range(12), gain=0.8)
    write_study(tmp_path / "s", ["full"], range(20, 32), gain=0.2)
    first = table_of(tmp_path / "s").iloc[0]
    assert (first["n"], first["Verdict"]) == (12, "interval only, seeds are not paired")


def test_both_tests_are_corrected_over_the_rows_that_are_tested(tmp_path):
    write_study(
        tmp_path / "s", ["flash", "full", "window"], SEEDS, gain={"flash": 0.3, "full": 0.1, "window": 0.5}, spread=0.2
    )
    table = table_of(tmp_path / "s")
    tested = table[table["n"] == 12]
    study = load_study(tmp_path / "s")
    plain = [
        curves.paired(curves.run_summaries(study, cost), "flash", other, "at_budget").to_numpy()
        for other in ("full", "window")
        for cost in ("device_seconds", "pflop")
    ] + [curves.by_seed(curves.run_summaries(study), "window", "gain").to_numpy()]
    p_t = significance.holm([stats.ttest_1samp(values, 0).pvalue for values in plain])
    np.testing.assert_allclose(tested["p (t, Holm)"], p_t)
    flips = np.array(np.meshgrid(*[[-1, 1]] * 12)).reshape(12, -1).T
    shares = [np.mean(abs(flips @ values) >= abs(values.sum()) - 1e-12) for values in plain]
    np.testing.assert_allclose(tested["p (sign flips, Holm)"], significance.holm(shares))


def test_flash_is_compared_at_equal_seconds_and_at_equal_pflop_where_they_differ(known):
    """A full trajectory takes twice the seconds and, in these records, the same PFLOP."""
    table = table_of(known)
    at_seconds, at_pflop = (item for _, item in table.iterrows() if item["Measure"].startswith("Flash − full"))
    assert at_seconds["Measure"] == "Flash − full, reward at 15 CPU-s"
    assert at_pflop["Measure"] == "Flash − full, reward at 0.2 PFLOP"
    assert at_seconds["Estimate"].value == pytest.approx(0.8 - 0.2 / 2, abs=0.04)
    assert at_pflop["Estimate"].value == pytest.approx(0.8 - 0.2, abs=0.04)
    measures = list(table_of(known, cost="pflop")["Measure"])
    assert measures[:2] == [at_pflop["Measure"], at_seconds["Measure"]]


def common_study(path, noise="linear", seeds=SEEDS):
    """Tuned runs, and `no_rectification` at the others' rate, where it gains 0.2 more."""
    gain = dict.fromkeys(TUNED, 0.3) | {"no_rectification": 0.1}
    write_tuned(path, seeds=seeds, noise=noise, gain=gain, spread=0.01)
    for seed in seeds:
        config = at(1.5e-4, schedule={"noise": noise})
        write_run(path / f"c{seed}", seed=seed, method="no_rectification", config=config, gain=0.3, spread=0.01)
    return path


def test_the_two_by_two_has_rows_at_tuned_rates_and_at_the_common_rate(tmp_path):
    table = table_of(common_study(tmp_path / "s"))
    itg = table[table["Claim"] == "Iso-temporal grouping helps"]
    assert list(itg["Measure"].str.partition(",")[0]) == [
        "ITG main effect at tuned rates",
        "ITG main effect at common rate 1.5e-4",
    ]
    assert itg["Estimate"].iloc[0].value == pytest.approx(-0.1, abs=0.01)
    assert itg["Estimate"].iloc[1].value == pytest.approx(0.0, abs=0.01)
    assert list(itg["n"]) == [12, 12]
    assert itg["Verdict"].iloc[0] == "contradicted"
    summaries = curves.run_summaries(load_study(tmp_path / "s"))
    effects = ablation.effects_table(summaries)
    tgr = effects[effects["Effect"] == "TGR (main effect)"].set_index("Learning rates")["Effect on reward"]
    assert tgr["tuned rates"].value == pytest.approx(0.1, abs=0.01)
    assert tgr["common rate 1.5e-4"].value == pytest.approx(0.0, abs=0.01)


def test_where_all_tuned_rates_are_one_there_is_one_row_also_beside_an_sde_with_two(tmp_path):
    common_study(tmp_path / "s", "linear")
    same = dict.fromkeys(TUNED, 3e-4)
    for method in TUNED:
        write_study(tmp_path / "f", [method], SEEDS, "flow", config=at(3e-4, same, schedule={"noise": "flow"}))
    table = table_of(tmp_path / "s", tmp_path / "f")
    itg = table[table["Claim"] == "Iso-temporal grouping helps"]
    assert list(zip(itg["SDE noise"], itg["Measure"].str.partition(",")[0], strict=True)) == [
        ("linear", "ITG main effect at tuned rates"),
        ("flow", "ITG main effect at tuned and common rate 3e-4"),
        ("linear", "ITG main effect at common rate 1.5e-4"),
    ]


def test_a_study_without_common_rate_runs_says_what_is_missing(known):
    missing = table_of(known)["Verdict"]
    assert (
        sum(
            missing
            == "not tested (needs runs of flash, no_iso_temporal, no_rectification, naive_one_step at a common rate)"
        )
        == 1
    )


def test_the_row_of_lambda_has_the_slope_and_an_interval_that_stays_below_1(tmp_path):
    measurements(tmp_path / "s", slope=1.3, noise=0.1, repeats=12)
    lambda_ = row(table_of(tmp_path / "s"), "Claim", "λ predicts the gradient norm")
    slope = re.search(r"; slope (1\.\d+) \[(1\.\d+), (1\.\d+)\]; n counts repeats", lambda_["Measure"])
    assert 1.0 < float(slope[2]) < 1.3 < float(slope[3])
    assert lambda_["Estimate"].low < lambda_["Estimate"].value < lambda_["Estimate"].high < 1
    assert lambda_["n"] == 12


def test_the_tests_of_a_large_study_take_seconds():
    """All rows of three SDEs at 32 seeds: 2 to 4 s, because the rows share their sign flips; one by one it would be 40."""
    random = np.random.default_rng(0)
    claims = []
    for _ in range(30):
        values = random.normal(0.2, 1, 32)
        found = ablation.Effect(verdicts.mean_estimate(values), values, True)
        claims.append(verdicts.Claim(text="", noise="", measure="", side=1, found=found, shown=found.estimate))
    start = time.process_time()
    p_t, p_flips = verdicts.corrected_p(claims)
    assert time.process_time() - start < 12
    np.testing.assert_allclose(p_flips, p_t, atol=0.05)


def test_the_readmes_table_is_the_committed_studys():
    given = sections.material(load_study(HERE / "fixtures" / "tiny_study.tar.xz"), "device_seconds")
    *_, shown = sections.claims(given)
    readme = (HERE.parent / "README.md").read_text()
    assert render.to_markdown(shown.table) in readme
    assert " ".join(shown.caption.split()) in " ".join(readme.split())
