"""The page's first sentences: they follow from the verdict table, whatever it says."""

import pandas as pd

from analysis import summary
from analysis.page import lead
from analysis.shown import material
from analysis.statistics import Estimate
from analysis.study import load_study

from test_study import write_run, write_study  # isort: skip

SEEN = Estimate(0.2, 0.1, 0.3, 12, signed=True)


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    """A verdict table of (claim, SDE noise, verdict)."""
    return pd.DataFrame(
        [
            {
                "Claim": claim,
                "SDE noise": noise,
                "Verdict": verdict,
                "Estimate": SEEN if "not tested" not in verdict else Estimate(float("nan")),
            }
            for claim, noise, verdict in rows
        ]
    )


def test_a_claim_counts_where_all_its_comparisons_agree():
    verdicts = table(
        ("A helps", "linear", "supported"),
        ("A helps", "flow", "supported"),
        ("B helps", "linear", "not resolved at n = 12 (smallest effect that could have been seen: 0.1)"),
        ("B helps", "flow", "contradicted"),
        ("C helps", "linear", "not tested (needs runs of window)"),
        ("C helps", "flow", "not tested (needs runs of window)"),
    )
    assert summary.conclusion(verdicts) == (
        "Of the paper's 3 claims, 1 is supported (A helps), 1 is not tested, for want of runs or measurements (C helps) and 1 "
        "is different from one comparison to the next (B helps: not resolved (linear), contradicted (flow))."
    )


def test_verdicts_that_differ_within_one_sde_are_counted():
    verdicts = table(*[("A", "linear", verdict) for verdict in ("supported", "supported", "interval only, n = 3 < 12")])
    assert "A: supported 2× and interval only 1× (linear)" in summary.conclusion(verdicts)


def test_a_cell_has_one_word_for_comparisons_that_agree_and_each_its_own_otherwise():
    verdicts = table(
        ("A", "linear", "supported"),
        ("A", "linear", "supported"),
        ("A", "flow", "supported"),
        ("A", "flow", "contradicted"),
    )
    [row] = summary.summary_table(verdicts).to_dict("records")
    number = "+0.20 [+0.10, +0.30]".replace(" ", "\N{NO-BREAK SPACE}")  # an interval does not wrap
    assert row == {
        "Claim": "A",
        "Linear SDE noise": f"supported: {number} and {number}",
        "Flow SDE noise": f"supported: {number}; contradicted: {number}",
    }


def test_the_best_method_is_the_one_with_the_highest_mean_at_equal_cost(tmp_path):
    write_study(
        tmp_path / "s", methods=["flash", "window"], seeds=range(3), gain={"flash": 0.2, "window": 0.9}, spread=0.0
    )
    claims, ahead = lead(material(load_study(tmp_path / "s"), "device_seconds"))
    assert claims.startswith("Of the paper's 6 claims, ")
    assert ahead.startswith("Highest mean reward at 15 CPU-s: Sliding window (Fast1), 2.4")


def test_without_anything_to_compare_the_first_sentence_tells_what_the_runs_gained(tmp_path):
    for seed in range(5):
        write_run(tmp_path / "s" / f"r{seed}", method="own", seed=seed, spread=0.0, iterations=4, every=2)
    [sentence] = lead(material(load_study(tmp_path / "s"), "device_seconds"))
    assert "own, seed 0: 1.500 → 2.000 (+0.50" in sentence and sentence.endswith("; and 2 more runs.")
