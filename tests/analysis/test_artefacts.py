"""The artefacts on synthetic studies with known answers: tables, ablation, stability, mechanism, paper, verdicts."""

import json

import numpy as np
import pandas as pd
import pytest
from test_study import METHODS, write_run, write_study

from analysis import ablation, curves, mechanism, paper, stability, tables
from analysis.archive import main as archive
from analysis.study import load_study

GAINS = {
    "full": 0.2,
    "window": -0.3,
    "naive_one_step": 0.3,
    "no_rectification": 0.4,
    "no_iso_temporal": 0.5,
    "flash": 0.8,
    "shared_noise": 1.2,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return load_study(write_study(tmp_path_factory.mktemp("runs") / "known", gain=GAINS, spread=0.05))


@pytest.fixture(scope="module")
def summaries(study):
    return curves.run_summaries(study)


def row(table: pd.DataFrame, column: str, value: str) -> pd.Series:
    [series] = [item for _, item in table.iterrows() if item[column] == value]
    return series


def test_the_comparison_shows_reward_gain_and_seconds_of_every_method(study, summaries):
    table = tables.comparison_table(study, summaries)
    assert len(table) == 7
    flash = row(table, "Method", "Flash-GRPO (ITG + TGR)")
    assert flash["Gain over base"].value == pytest.approx(0.8, abs=0.06)
    assert flash["Gain over base"].low < 0.8 < flash["Gain over base"].high + 0.05
    assert flash["Evaluation reward"].value == pytest.approx(1.5 + flash["Gain over base"].value)
    assert flash["rollout"] == pytest.approx(0.5)
    assert flash["Device-seconds per iteration"].value == pytest.approx(0.75)
    assert (flash["n"], flash["Evaluation reward"].n) == ("8", 8)
    assert row(table, "Method", "Full trajectory (Flow-GRPO)")["Device-seconds"].value == pytest.approx(30.0)


def test_rewards_are_compared_at_the_largest_budget_that_all_runs_reached(study, summaries):
    assert curves.equal_budget(study) == pytest.approx(15.0)
    full = summaries[summaries["arm"] == "full"]
    np.testing.assert_allclose(full["at_budget"] - 1.5, (full["final"] - 1.5) / 2)


def test_a_run_that_failed_shows_in_n_as_not_counted(tmp_path):
    write_study(tmp_path / "s", methods=["flash"], seeds=range(3))
    write_run(tmp_path / "s" / "bad", seed=7, status="failed", reason="CUDA out of memory")
    some = load_study(tmp_path / "s")
    table = tables.comparison_table(some, curves.run_summaries(some))
    assert table["n"].item() == "3 of 4"
    runs = tables.runs_table(some, curves.run_summaries(some))
    assert row(runs, "Run", "bad")["Status"] == "failed"


def test_a_single_runs_gain_has_an_interval_over_prompts(study, summaries):
    gain = tables.runs_table(study, summaries)["Gain over base (95 % over prompts)"].iloc[0]
    assert gain.n == 9
    assert np.isfinite(gain.low)


def test_main_effects_and_interaction_are_those_of_the_two_by_two_table(summaries):
    table = ablation.effects_table(summaries)
    expected = {"ITG (main effect)": 0.2, "TGR (main effect)": 0.3, "ITG × TGR (interaction)": 0.2}
    for name, value in expected.items():
        effect = row(table, "Effect", name)
        assert effect["Effect on reward"].value == pytest.approx(value, abs=0.09)
        assert effect["Effect on reward"].low < value < effect["Effect on reward"].high
        assert effect["Seeds"] == "paired"
        assert effect["n"] == 8


def test_effects_of_two_sdes_are_pooled_by_stratum(tmp_path):
    for noise in ("linear", "flow"):
        write_study(tmp_path / noise, noise=noise, gain=GAINS, seeds=range(7))
    table = ablation.effects_table(curves.run_summaries(load_study(tmp_path / "linear", tmp_path / "flow")))
    rows = table[table["Effect"] == "TGR (main effect)"].set_index("SDE noise")["Effect on reward"]
    assert list(rows.index) == ["linear", "flow", "both"]
    assert rows["both"].value == pytest.approx((rows["linear"].value + rows["flow"].value) / 2)
    assert rows["both"].high - rows["both"].low < rows["linear"].high - rows["linear"].low


def test_arms_without_shared_seeds_are_compared_unpaired(tmp_path):
    write_study(tmp_path / "s", methods=["flash"], seeds=range(4), gain=0.8)
    write_study(tmp_path / "s", methods=["full"], seeds=range(10, 14), gain=0.2)
    effect = ablation.effect(curves.run_summaries(load_study(tmp_path / "s")), {"flash": 1, "full": -1})
    assert not effect.paired
    assert effect.estimate.n == 4
    assert effect.estimate.low < 0.7 < effect.estimate.high


def test_differences_from_flash_are_paired_by_seed_and_by_prompt(study, summaries):
    table = ablation.differences_from_flash(study, summaries, "device_seconds")
    naive = row(table, "Method", "Naive one-step")
    assert naive["Difference from Flash"].value == pytest.approx(-0.5, abs=0.1)
    assert naive["over prompts, same seeds"].value == pytest.approx(naive["Difference from Flash"].value)
    assert (naive["n"], naive["prompts"]) == (8, 9)
    assert naive["p (Holm)"] >= naive["Difference from Flash"].p
    assert naive["Smallest detectable"] > 0


def test_prompts_that_only_one_method_has_are_not_compared():
    first = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 1.0]}, index=[0, 1])
    second = pd.DataFrame({"a": [0.5, 0.5], "c": [9.0, 9.0]}, index=[0, 1])
    np.testing.assert_allclose(ablation.prompt_differences(first, second), [1.0])


def test_cost_to_target_keeps_runs_that_never_reached_it_and_failed_ones(tmp_path):
    write_study(tmp_path / "s", methods=["flash"], seeds=range(3), gain=1.0, spread=0.0)
    write_run(tmp_path / "s" / "slow", seed=8, gain=0.1, spread=0.0)
    write_run(tmp_path / "s" / "failed", seed=9, gain=0.1, spread=0.0, iterations=10, status="failed")
    some = load_study(tmp_path / "s")
    estimate, reached, runs = ablation.cost_to_target(some, "flash", 2.0, 15.0, "device_seconds")
    assert (reached, runs, estimate.n) == (3, 5, 5)
    # Three reach it at 7.5; of the two at risk before them one is censored at 7.5 too, the other lives to 15.
    assert estimate.value == pytest.approx(7.5 + 7.5 * 2 / 5)


def test_the_ablation_table_has_switches_budget_interquartile_mean_area_and_cost(study, summaries):
    table = ablation.ablation(study, summaries, "device_seconds", target=1.9)
    assert list(table["ITG"]) == ["–", "–", "no", "yes", "no", "yes", "yes"]
    assert list(table["TGR"]) == ["–", "–", "no", "no", "yes", "yes", "yes"]
    flash = row(table, "Method", "Flash")
    assert flash["CPU-s to reward 1.9"].value == pytest.approx(7.5, rel=0.15)
    assert flash["Area under the curve"].value == pytest.approx(1.5 + 0.4, abs=0.05)
    assert flash["Interquartile mean"].value == pytest.approx(flash["Reward at 15 CPU-s"].value, abs=0.05)
    window = row(table, "Method", "Window")
    assert (window["CPU-s to reward 1.9"], window["reached"]) == ("> 15", "0 of 8")


def test_seeds_that_ended_below_their_start_have_collapsed(study):
    table = stability.stability(study)
    assert row(table, "Method", "Sliding window (Fast1)")["collapsed"] == "8 of 8"
    assert row(table, "Method", "Flash-GRPO (ITG + TGR)")["collapsed"] == "0 of 8"
    assert row(table, "Method", "Sliding window (Fast1)")["share collapsed"].low > 0.5


@pytest.mark.parametrize(("reason", "collapsed"), [("reward is not finite", True), ("CUDA out of memory", False)])
def test_a_run_that_failed_on_numbers_has_collapsed_and_one_that_failed_otherwise_has_not(tmp_path, reason, collapsed):
    write_run(tmp_path / "s" / "a", status="failed", reason=reason)
    outcomes = stability.run_outcomes(load_study(tmp_path / "s"))
    assert outcomes["collapsed"].item() == collapsed
    assert outcomes["failed"].item()


def test_a_run_that_lost_its_gain_again_fell_back():
    frame = pd.DataFrame({"reward_mean": [1.0, 2.0, 1.4], "prompt_rewards": [{}, {}, {}]})
    assert stability._fell_back(frame)
    assert not stability._fell_back(frame.assign(reward_mean=[1.0, 2.0, 1.6]))


def measurements(path, slope=1.0, noise=0.01, repeats=8) -> list[dict]:
    """Gradient norms proportional to λ to the power of `slope`, variance shares, cosines of 0.1 and 0.2."""
    random = np.random.default_rng(0)
    rows = []
    for repeat in range(repeats):
        for step, factor in enumerate(np.linspace(0.13, 0.27, 10)):
            norm = factor**slope * np.exp(noise * random.normal())
            shared = {"quantity": "gradient_norm", "noise": "linear", "step": step, "lambda": factor, "repeat": repeat}
            rows.append({**shared, "weighting": "uniform", "value": norm})
            rows.append({**shared, "weighting": "inverse_lambda", "value": norm / factor})
        for method, cosine in (("flash", 0.1), ("shared_noise", 0.2)):
            value = cosine + 0.02 * random.normal()
            row = {"quantity": "alignment", "method": method, "noise": "linear", "value": value, "repeat": repeat}
            rows.append({**row, "device_seconds": 0.5})
    for source, share in (("step", 0.01), ("initial_noise", 0.9), ("sde_noise", 0.09)):
        rows.append({"quantity": "variance_share", "noise": "linear", "source": source, "value": share})
    path.mkdir(parents=True, exist_ok=True)
    (path / "mechanism.json").write_text(json.dumps({"kind": "mechanism", "measurements": rows}))
    return rows


def test_the_mechanism_tables_find_slope_correlation_and_alignment(tmp_path):
    measurements(tmp_path)
    some, notes = mechanism.load_mechanism([tmp_path])
    assert notes == []
    table = mechanism.gradient_table(some)
    uniform, rectified = table.iloc[0], table.iloc[1]
    assert uniform["Slope (1: proportional)"].value == pytest.approx(1.0, abs=0.02)
    assert uniform["Correlation with λ (log-log)"].value > 0.99
    assert rectified["Coefficient of variation"].value < 0.1 * uniform["Coefficient of variation"].value
    assert uniform["n"] == 8
    alignment = mechanism.alignment_table(some)
    assert list(alignment["n"]) == [8, 8]
    assert alignment["Cosine"].iloc[1].value == pytest.approx(0.2, abs=0.02)
    assert alignment["Cosine per device-second"].iloc[1].value == pytest.approx(0.4, abs=0.04)
    assert mechanism.variance_shares(some)["initial noise (share)"].item().value == pytest.approx(0.9)


@pytest.mark.parametrize("text", ["", "{}", '{"measurements": 3}'])
def test_an_unreadable_mechanism_file_is_a_note(tmp_path, text):
    (tmp_path / "mechanism.json").write_text(text)
    some, notes = mechanism.load_mechanism([tmp_path])
    assert len(some) == 0
    assert len(notes) == 1


def test_steps_that_are_not_trained_have_a_row_of_their_own_and_do_not_count_in_the_claim(tmp_path):
    rows = measurements(tmp_path)
    late = [{**row, "step": row["step"] + 10, "lambda": 10.0 - row["step"]} for row in rows if "step" in row]
    (tmp_path / "mechanism.json").write_text(json.dumps({"measurements": rows + late}))
    some, _ = mechanism.load_mechanism([tmp_path])
    table = mechanism.gradient_table(some)
    assert list(table["Steps"]) == ["0–9", "0–19"] * 2
    assert table["Correlation with λ (log-log)"].iloc[0].value > 0.99
    assert table["Correlation with λ (log-log)"].iloc[1].value < 0.9
    assert mechanism.power_law(some, "linear")[0].min() > 0.99


def test_table_1_has_the_papers_numbers_exactly_and_ours_under_them(tmp_path):
    path = write_study(tmp_path / "s", methods=["flash"], seeds=range(3))
    for seed in range(3):
        scores = {"aesthetic_quality": [0.66 + 0.01 * seed, []], "object_class": 0.9, "other": 1}
        (path / f"flash-linear-seed{seed}" / "vbench.json").write_text(json.dumps(scores))
    study = load_study(path)
    table = paper.table1(study, curves.run_summaries(study))
    published, ours = (row for _, row in table[table["Method"] == "Flash-GRPO"].iterrows())
    assert (published["Aesthetic quality"], published["Device-hours"], published["Object class"]) == (66.43, 350, 90.0)
    assert ours["Aesthetic quality"].value == pytest.approx(67.0)
    assert ours["Aesthetic quality"].n == 3
    assert np.isnan(ours["Imaging quality"].value)
    assert len(table) == 8
    (path / "flash-linear-seed1" / paper.BASE).mkdir(parents=True)
    (path / "flash-linear-seed1" / paper.BASE / "vbench.json").write_text(json.dumps({"object_class": [0.88, []]}))
    archive([str(path), str(tmp_path / "s.tar.xz")])
    for given in (path, tmp_path / "s.tar.xz"):
        study = load_study(given)
        table = paper.table1(study, curves.run_summaries(study))
        assert len(table) == 9 and row(table, "Method", "Base model")["Object class"] == 88


def test_table_1_says_of_which_model_the_study_is_where_it_is_not_the_papers(tmp_path):
    for model, source in (("/models/Wan2.1-T2V-14B", "this study, Wan2.1-T2V-14B"), ("wan2.1-1.3b", "this study")):
        path = write_study(tmp_path / str(len(source)), methods=["flash"], seeds=range(2), model=model)
        (path / "flash-linear-seed0" / "vbench.json").write_text(json.dumps({"object_class": 0.9}))
        study = load_study(path)
        table = paper.table1(study, curves.run_summaries(study))
        assert set(table["Source"]) == {"paper", source}


def test_the_papers_curves_are_drawn_only_over_its_own_model_and_reward(tmp_path):
    from matplotlib.figure import Figure

    def labels(**options):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        study = load_study(write_study(path, methods=["window", "flash"], seeds=range(2), **options))
        axes = paper.reward_figure(Figure().subplots(1, 2), study, "fig4")
        return axes[1].get_legend_handles_labels()[1]

    layers = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    folder = {"model": "/models/wan", "config": {"model": {"architecture": layers}, "reward": {"urls": ["http://a"]}}}
    assert "Window, paper, n=1" in labels(model="wan2.1-1.3b", part="hpsv3")
    assert "Window, paper, n=1" in labels(**folder, part="hpsv3")
    assert not any("paper" in label for label in labels(model="tiny", part="hpsv3"))
    assert not any("paper" in label for label in labels(model="wan2.1-1.3b"))
    assert not any(
        "paper" in label for label in labels(**folder | {"config": {"model": {"architecture": None}}}, part="hpsv3")
    )


def test_the_copied_paper_numbers_are_those_that_were_given():
    table = pd.read_csv(paper.PAPER / "table1_vbench.csv").set_index("method")
    assert table.loc["Flash-GRPO"].tolist() == [350.0, 66.43, 68.28, 98.7, 90.0]
    assert paper.paper_curves("fig5", "eval")["flash"]["hpsv3"].tolist()[0] == 4.67
    assert paper.teaser_factors() == {"full": 19.4 / 3.2, "flash": 1.0}


def test_the_factor_between_methods_is_paired_by_seed(summaries):
    full = row(tables.cost_table(summaries), "Method", "Full trajectory (Flow-GRPO)")
    assert full["Times Flash"].value == pytest.approx(2.0)
    assert full["Times Flash"].n == 8
    assert full["Device-seconds per iteration"].value == pytest.approx(1.5)


def test_every_expected_method_is_in_the_synthetic_study(study):
    assert set(study.runs["arm"]) == set(METHODS)
