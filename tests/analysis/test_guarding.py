"""Guards in the analysis: which held, when first and why; runs that one has ended; what is ringed on curves."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_study import PROMPTS, write_study

from analysis import curves, figures, guarding, interactive, sections, tables
from analysis.study import load_study
from flash_grpo.records.files import MANIFEST, RECORDS

REASON = "stopped by stop_when.held_out_falls at iteration 15: the held-out reward is 0.3 below the base's"


def _changed(run_dir, change) -> None:
    """Change each evaluation record of a run."""
    records = [json.loads(line) for line in (run_dir / RECORDS).read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            change(record)
    (run_dir / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))


def _held_out(record, fall: float, diversity: float) -> None:
    """Let the held-out reward of every prompt fall by `fall`, and the diversity to a share, once training has begun."""
    begun = record["iteration"] > 0
    record["held_out_prompts"] = {text: 0.01 * n + 0.8 - fall * begun for n, text in enumerate(PROMPTS)}
    record["held_out"] = 0.84 - fall * begun
    record["diversity"] = 0.1 * (diversity if begun else 1)


@pytest.fixture
def study_dir(tmp_path):
    """Two honest methods; in one seed of flash the held-out reward falls and a guard ends the run, in one diversity is lost."""
    path = write_study(tmp_path / "study", ["flash", "full"], seeds=range(4))
    for run_dir in path.iterdir():
        fall, diversity = {"flash-linear-seed1": (0.3, 0.9), "flash-linear-seed2": (0.0, 0.4)}.get(
            run_dir.name, (0, 0.9)
        )
        _changed(run_dir, lambda record, fall=fall, diversity=diversity: _held_out(record, fall, diversity))
    stopped = path / "flash-linear-seed1"
    manifest = json.loads((stopped / MANIFEST).read_text())
    (stopped / MANIFEST).write_text(json.dumps(manifest | {"reason": REASON}))
    lines = (stopped / RECORDS).read_text().splitlines(keepends=True)
    (stopped / RECORDS).write_text("".join(line for line in lines if json.loads(line)["iteration"] <= 15))
    return path


def test_each_guard_is_found_where_it_first_holds(study_dir):
    found = guarding.flagged(load_study(study_dir))
    assert found[["run", "guard", "iteration"]].values.tolist() == [
        ["flash-linear-seed1", "held_out_falls", 15],  # the third evaluation after training has begun
        ["flash-linear-seed2", "diversity_below", 5],
    ]
    assert found["why"].iloc[1] == "diversity 0.04 is below 0.5 of the base's 0.1"


def test_captions_of_evaluations_explain_the_rings(study_dir):
    study = load_study(study_dir)
    assert "Rings: where a guard first holds in a run." in figures.means_and_seeds(study, study.evaluations)
    assert "Rings" not in figures.means_and_seeds(study, study.iterations, points=False)


def test_a_run_s_own_thresholds_count(study_dir):
    run_dir = study_dir / "full-linear-seed0"
    manifest = json.loads((run_dir / MANIFEST).read_text())
    manifest["config"]["stop_when"] = {"diversity_below": 0.95, "base_distance_above": "far", "held_out_falls": -1}
    (run_dir / MANIFEST).write_text(json.dumps(manifest))
    found = guarding.flagged(load_study(study_dir))
    assert found.loc[found["run"] == run_dir.name, "guard"].tolist() == ["diversity_below"]


def test_the_tables_count_runs_and_say_when_and_why(study_dir):
    study = load_study(study_dir)
    found = guarding.flagged(study)
    table = guarding.guards_table(study, found, "iterations").set_index("Method")
    full, flash = (table.loc[name] for name in ("Full trajectory (Flow-GRPO)", "Flash-GRPO (ITG + TGR)"))
    assert (full["Held-out reward fell"], full["Diversity lost"], full["Ended a run"]) == ("0 of 4",) * 3
    assert (flash["Held-out reward fell"], flash["Diversity lost"], flash["Ended a run"]) == ("1 of 4",) * 3
    assert "Far from the base" not in table, "no run had a threshold"
    assert flash["First at (iterations)"].value == 10 and np.isnan(full["First at (iterations)"].value)
    assert flash["Change from base"].value == pytest.approx(-0.3 / 4) and flash["Change from base"].signed
    assert full["Share of base's"].value == pytest.approx(0.9)
    runs = guarding.flagged_table(study, found, "iterations")
    assert runs["Ended the run"].tolist() == ["yes", ""]
    assert runs["First after iteration"].tolist() == [15, 5]


def test_two_guards_at_one_evaluation_are_two_rows(study_dir):
    _changed(
        study_dir / "full-linear-seed0", lambda record: _held_out(record, 0.3, 0.9 if record["iteration"] < 15 else 0.4)
    )
    study = load_study(study_dir)
    runs = guarding.flagged_table(study, guarding.flagged(study), "iterations")
    assert runs.loc[runs["Run"] == "full-linear-seed0", "First after iteration"].tolist() == [15, 15]


def test_a_run_that_a_guard_ended_keeps_its_last_reward_and_lowers_no_budget(study_dir):
    study = load_study(study_dir)
    assert study.runs.set_index("run")["stopped"].sum() == 1
    assert curves.equal_budget(study, "iterations") == 20
    summaries = curves.run_summaries(study, "iterations").set_index("run")
    stopped = summaries.loc["flash-linear-seed1"]
    assert stopped["at_budget"] == stopped["final"] and stopped["spent"] == 15
    ax = Figure().subplots()
    figures.reward_against_cost(ax, study, "iterations")
    [mean] = [line for line in ax.lines if line.get_label().startswith("Flash-GRPO")]
    assert mean.get_xdata()[-1] == 20


def test_first_flags_are_ringed_on_the_curve_and_said_once_in_the_legend(study_dir):
    study, ax = load_study(study_dir), Figure().subplots()
    figures.reward_against_cost(ax, study, "iterations")
    [ring] = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert ring.get_label() == "A guard holds for the first time in a run"
    assert ring.get_xdata().tolist() == [15, 5]


def test_the_page_shows_the_guards_and_the_held_out_reward_and_rings_in_its_charts(study_dir):
    study = load_study(study_dir)
    given = sections.material(study, "iterations")
    by_title = {section.title: section.shown for section in sections.all_sections(given)}
    guards, runs = by_title["Guards"]
    assert (guards.name, runs.name, len(runs.table)) == ("guards", "flagged_runs", 2)
    names = {shown.name for shown in by_title["What else changed"]}
    assert {"held_out", "diversity"} <= names
    comparison = next(shown for shown in by_title["Reward against cost"] if shown.name == "comparison").table
    flash = comparison.set_index("Method").loc["Flash-GRPO (ITG + TGR)"]
    assert flash["Held-out reward"].value == pytest.approx(0.84 - 0.3 / 4)
    curve = next(shown for shown in by_title["Reward against cost"] if shown.name == "reward_against_iterations")
    [ring] = [line for line in interactive.chart(curve.figure)["lines"] if line.get("mode") == "markers"]
    assert (ring["marker"]["symbol"], ring["legendgroup"]) == ("circle-open", "flash")
    statuses = tables.runs_table(study, given.summaries).set_index("Run")["Status"]
    assert statuses["flash-linear-seed1"] == "ended early" and set(statuses) == {"ended early", "completed"}


def test_a_study_without_flags_or_from_before_there_were_any_has_nothing_ringed_and_no_note(tmp_path):
    path = write_study(tmp_path / "old", ["flash"], seeds=range(2))
    new = ("held_out", "held_out_sem", "held_out_parts", "held_out_prompts", "flags", "diversity", "base_distance")
    for run_dir in path.iterdir():
        _changed(run_dir, lambda record: [record.pop(name) for name in new])
    study, ax = load_study(path), Figure().subplots()
    assert not [note for note in study.notes if "lack" in note]
    found = guarding.flagged(study)
    assert found.empty and guarding.flagged_table(study, found, "iterations").empty
    assert list(guarding.guards_table(study, found, "iterations")) == ["Method", "SDE noise", "n"]
    figures.reward_against_cost(ax, study, "iterations")
    assert not [line for line in ax.lines if line.get_markerfacecolor() == "none"]
