"""Panels beside the reward: what varies is drawn, what does not is said; settings and prompts of a study."""

import json

import pytest
from test_study import PROMPTS, write_run, write_study

from analysis import panels, readings, settings
from analysis.curves import phase_seconds, run_summaries
from analysis.shown import material
from analysis.study import load_study
from analysis.tables import comparison_table, cost_table


def rewritten(run_dir, change) -> None:
    """Change each record of a run by a function of its dictionary."""
    lines = [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]
    (run_dir / "records.jsonl").write_text("".join(json.dumps(row | change(row)) + "\n" for row in lines))


def test_a_quantity_that_never_changes_is_a_line_and_no_figure(tmp_path):
    study = write_study(tmp_path / "s", methods=["flash"], seeds=range(2), iterations=4, every=2)
    *shown, constant = panels.training_panels(material(load_study(study), "device_seconds"))
    assert {item.name for item in shown} == {"gradient_norm", "ratio_drift", "clip_fraction"}
    assert constant.figure is None
    assert constant.caption == (
        "The same in every record: KL of the update (approximate) 1e-05; KL to the base 0; Reward std within groups 0.3; Share "
        "of groups without spread 0."
    )


def test_parts_diversity_and_distance_are_drawn_where_they_are_recorded(tmp_path):
    study = write_study(tmp_path / "s", methods=["flash", "full"], seeds=range(2), iterations=4, every=2)
    for run_dir in study.iterdir():
        rewritten(
            run_dir,
            lambda row: (
                {
                    "reward_parts": {"<colour>": row["iteration"] / 10, "motion": 0.3},
                    "diversity": 1 / (1 + row["iteration"]),
                }
                if row["kind"] == "evaluation"
                else {}
            ),
        )
    shown = list(panels.evaluation_panels(material(load_study(study), "device_seconds")))
    assert [item.title for item in shown] == ["Reward part: <colour>", "Diversity", "Not drawn"]
    assert [item.name for item in shown][:2] == ["reward_part_1", "diversity"]
    assert "Reward part: motion 0.3" in shown[-1].caption


def test_a_reading_names_the_ends_of_the_curves(tmp_path):
    write_study(tmp_path / "s", methods=["flash", "full"], seeds=range(2), gain={"flash": 0.9}, spread=0.0)
    study = load_study(tmp_path / "s")
    words = readings.of_curves("Look.", study, study.evaluations, "device_seconds")
    assert words == "Look. Flash ends highest, at 2.4, and Full lowest, at 1.5."


def test_both_tables_have_one_time_of_an_iteration_and_its_phases_add_up_to_it(tmp_path):
    study = load_study(write_study(tmp_path / "s", methods=["flash", "full"], seeds=range(3)))
    summaries = run_summaries(study)
    each = "Device-seconds per iteration"
    assert list(comparison_table(study, summaries)[each]) == list(cost_table(summaries)[each])
    parts = phase_seconds(summaries).sum(axis=1)
    assert parts.to_numpy() == pytest.approx((summaries["device_seconds"] / summaries["iterations"]).to_numpy())


def test_settings_name_the_runs_that_differ(tmp_path):
    for method, lr in (("flash", 1e-4), ("full", 1e-4), ("window", 3e-4)):
        write_run(
            tmp_path / "s" / method,
            method=method,
            iterations=2,
            every=2,
            config={"optim": {"optimizer": {"lr": lr}}, "budget": {"pflop": 1}, "training": {"epochs": 1}},
        )
    study = load_study(tmp_path / "s")
    rows = settings.settings_table(study).set_index("Setting")["Value"]
    assert rows["optim.optimizer.lr"] == "0.0001; 0.0003 (Window)"
    assert rows["training.epochs"] == "1"
    assert not {"seed", "budget.pflop"} & set(rows.index)
    assert list(settings.prompts_table(study)["Prompt"]) == PROMPTS


def test_facts_tell_of_date_processor_and_code(tmp_path):
    run_dir = write_run(tmp_path / "s" / "a", iterations=2, every=2)
    manifest = json.loads((run_dir / "run.json").read_text())
    manifest["starts"] = [{"time": "2026-01-31T23:59:59+0000"}]
    manifest["hardware"] |= {"cores": 2, "threads": 1}
    (run_dir / "run.json").write_text(json.dumps(manifest))
    facts = settings.facts(load_study(tmp_path / "s"))
    assert facts["Run on"] == "2026-01-31"
    assert facts["Processors"] == "1 × x86_64, 2 cores, 1 threads"
    assert facts["Code (+: with changes)"] == "0123456789"


def test_notes_that_many_runs_have_with_other_numbers_are_one_line(tmp_path):
    for seed in range(6):
        run_dir = write_run(tmp_path / "s" / f"r{seed}", seed=seed, iterations=4, every=2)
        with open(run_dir / "records.jsonl", "a") as file:
            file.write(" \n" * (seed + 1))
    [note] = load_study(tmp_path / "s").notes
    assert note.startswith("6 of 6 runs: 1 blank lines") and "they differ" in note
