"""Whether diagnoses order methods as their gains do, on studies and diagnoses made by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_study import write_run

from analysis.prediction import compared, gains, load_diagnoses, main, prediction_table, rank_correlation, summary
from analysis.statistics import Estimate
from analysis.study import load_study

ROOT = Path(__file__).resolve().parents[2]
DIAGNOSES = sorted((ROOT / "analysis/fixtures/diagnoses").glob("*.json"))


def _pairs(signals, values, noise="linear"):
    gain = [Estimate(value) for value in values]
    return pd.DataFrame({"noise": noise, "signal": signals, "gain": gain, "method": map(str, range(len(gain)))})


def _diagnosis(folder: Path, method: str, ratio: float, noise: str = "linear") -> Path:
    found = {
        "kind": "diagnosis",
        "method": method,
        "noise": noise,
        "verdict": "good",
        "cost": {"iteration_forwards": 500.0},
        "gradient": {
            "ratio_per_1000_forwards": 2 * ratio,
            "ratio_error": ratio / 10,
            "num_prompts": 4,
            "group_size": 16,
        },
        "sizes": [
            {"group_size": 4, "num_prompts": None, "at_least": True},
            *({"group_size": size, "num_prompts": 1234, "at_least": size > 16} for size in (8, 16, 32)),
        ],
    }
    (folder / f"{method}-{noise}.json").write_text(json.dumps(found))
    return folder / f"{method}-{noise}.json"


def test_the_correlation_is_spearman_s_within_sdes():
    draw = np.random.default_rng(0)
    signal, gain = draw.normal(size=8), draw.normal(size=8)
    assert rank_correlation(_pairs(signal, gain)).value == pytest.approx(stats.spearmanr(signal, gain).statistic)
    apart = pd.concat([_pairs([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), _pairs([11, 12, 13, 14, 15], [5, 4, 3, 2, 1], "flow")])
    assert rank_correlation(apart).value == pytest.approx(0)


def test_an_order_that_agrees_is_resolved_and_one_by_chance_is_not():
    agreeing = rank_correlation(_pairs(range(8), range(8)))
    assert (agreeing.value, agreeing.low) == (pytest.approx(1), pytest.approx(1))
    draw = np.random.default_rng(0)
    found = [rank_correlation(_pairs(draw.normal(size=8), draw.normal(size=8))).low > 0 for _ in range(100)]
    assert sum(found) <= 10


def test_few_methods_have_no_interval():
    assert np.isnan(rank_correlation(_pairs([1, 2, 3], [1, 2, 3])).low)
    assert np.isnan(rank_correlation(_pairs([1], [1])).value)


def test_a_study_and_its_diagnoses_become_a_table(tmp_path, capsys):
    true = {"flash": 0.2, "full": 0.1, "window": 0.3, "shared_noise": 0.6}
    for method, gain in true.items():
        for seed in range(3):
            write_run(tmp_path / "study" / f"{method}-{seed}", method=method, seed=seed, gain=gain, spread=0)
    files = [_diagnosis(tmp_path, method, ratio) for method, ratio in true.items()]
    (tmp_path / "bad.json").write_text('{"kind": "mechanism"}')
    study = load_study(tmp_path / "study")
    assert {row.method: row.gain.value for row in gains(study).itertuples()}.keys() == true.keys()
    pairs = compared(load_diagnoses(files, []), gains(study))
    assert rank_correlation(pairs).value == pytest.approx(1)
    table = prediction_table(pairs)
    assert list(table.iloc[0, 5:]) == ["–", "1,200", "1,200", "> 1,200"]
    assert "orders the methods as their gains do" in list(summary(pairs))[-1]
    main([str(tmp_path / "study"), *map(str, files), str(tmp_path / "bad.json"), "--markdown"])
    out = capsys.readouterr().out
    assert "| Method |" in out and "note: " in out and "bad.json: not a diagnosis" in out


def test_nothing_to_compare_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), str(tmp_path / "absent.json")])
    assert "absent.json" in capsys.readouterr().err


def test_the_readme_says_what_the_committed_diagnoses_are_worth():
    """The numbers of the README are those that the command makes of the committed files."""
    pairs = compared(load_diagnoses(DIAGNOSES, []), gains(load_study(ROOT / "analysis/fixtures/tiny_study.tar.xz")))
    assert len(pairs) == 16
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert rank_correlation(pairs).text() in readme
    for row in prediction_table(pairs).to_dict("records"):
        assert f"| {row['Prompts × 8']} | {row['Prompts × 16']} |" in readme
