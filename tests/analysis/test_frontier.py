"""How much sooner than Flash-GRPO a method reaches its reward, on curves with known answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_study import write_study

from analysis import front, frontier
from analysis.curves import run_summaries
from analysis.render import cells, to_markdown
from analysis.statistics import Estimate
from analysis.study import load_study

ROOT = Path(__file__).resolve().parents[2]
GAINS = {"flash": 0.2, "fast": 0.8, "slow": 0.1}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Rewards rise linearly over 15 device-seconds: `fast` reaches Flash's end after a quarter of them, `slow` never."""
    path = write_study(tmp_path_factory.mktemp("frontier") / "study", GAINS, range(8), gain=GAINS, spread=0.01)
    return load_study(path)


def test_a_method_that_rises_four_times_as_fast_is_four_times_sooner(study):
    assert frontier.reached_after(study, "fast", "device_seconds") == pytest.approx(15 / 4, rel=0.05)
    for cost in ("device_seconds", "pflop"):
        times = frontier.times_sooner(study, "fast", cost)
        assert times.value == pytest.approx(4, rel=0.05)
        assert 3.5 < times.low < times.value < times.high < 4.5
        assert times.n == 8


def test_a_method_that_stays_below_has_no_factor(study):
    assert np.isnan(frontier.reached_after(study, "slow", "device_seconds"))
    assert np.isnan(frontier.times_sooner(study, "slow", "device_seconds").value)


def test_resamples_that_do_not_reach_the_reward_pull_the_interval_to_zero(tmp_path):
    gain = {"flash": 0.3, "as_good": 0.31}
    path = write_study(tmp_path / "near", gain, range(8), gain=gain, spread=0.1)
    times = frontier.times_sooner(load_study(path), "as_good", "device_seconds")
    assert np.isnan(times.value) or times.low == 0


@pytest.mark.filterwarnings("error")
def test_where_flash_may_end_below_the_base_the_interval_has_no_upper_end(tmp_path):
    gain = {"flash": 0.02, "fast": 0.8}
    path = write_study(tmp_path / "collapsed", gain, range(8), gain=gain, spread=0.2)
    times = frontier.times_sooner(load_study(path), "fast", "device_seconds")
    assert 1 < times.low < times.value < times.high == np.inf
    assert to_markdown(pd.DataFrame({"times": [times]})).splitlines()[-1].endswith(", inf] |")


def test_the_table_has_a_row_for_each_method_beside_flash(study):
    table = frontier.frontier_table(study, run_summaries(study), "device_seconds").set_index("Method")
    assert sorted(table.index) == ["fast", "slow"]
    assert table.loc["fast", "Times sooner (PFLOP)"].text() != "–"
    assert table.loc["slow", "Times sooner (PFLOP)"].text() == "–"
    assert table.loc["slow", "Diversity there"].text() == "–"


def test_without_flash_there_is_no_table(tmp_path):
    study = load_study(write_study(tmp_path / "alone", ["full"], range(3)))
    assert frontier.frontier_table(study, run_summaries(study), "device_seconds").empty


def test_an_sde_without_flash_is_compared_with_the_linear_one(tmp_path):
    write_study(tmp_path / "both", ["flash"], range(8), gain=GAINS, spread=0.01)
    write_study(tmp_path / "both", ["fast"], range(8), noise="constant", gain=GAINS, spread=0.01)
    study = load_study(tmp_path / "both")
    [row] = frontier.frontier_table(study, run_summaries(study), "device_seconds").to_dict("records")
    assert row["SDE noise"] == "constant" and row["Times sooner (PFLOP)"].value == pytest.approx(4, rel=0.05)


def test_on_the_front_is_what_none_beats_in_cost_and_diversity(study):
    def at(cost: float, diversity: float, noise: str = "linear") -> frontier.Reached:
        found = Estimate(diversity)
        return frontier.Reached(arm="a", noise=noise, of=study, flash=study, cost=cost, diversity=found)

    soon, diverse, late, never = at(1.0, 0.1), at(2.0, 0.2), at(3.0, 0.15), at(np.nan, 0.3)
    everyone = [soon, diverse, late, never, at(0.5, 0.9, noise="flow")]
    assert [frontier.on_front(one, everyone) for one in everyone[:4]] == [True, True, False, False]


def test_the_fronts_steps_pass_through_those_that_are_on_it(study):
    found = frontier.reached_by(study, run_summaries(study), "device_seconds")
    found = [replace(one, diversity=Estimate({"fast": 0.1, "flash": 0.2}.get(one.arm, 0.3))) for one in found]
    ax = front.reached_figure(Figure().subplots(), found, study, "device_seconds")
    [steps] = [line for line in ax.get_lines() if line.get_drawstyle() == "steps-post"]
    assert steps.get_xdata() == pytest.approx([15 / 4, 15], rel=0.05)
    assert [line.get_label() for line in ax.get_lines() if " n=" in line.get_label()] == [
        "fast, n=0",
        "Flash-GRPO (ITG + TGR), n=0",
    ]
    assert front.unbeaten(found) == "Beaten by none: Flash, fast. Never at that reward: slow."


def test_the_readmes_factors_on_the_scenes_world_are_the_committed_studys():
    study = load_study(ROOT / "analysis" / "fixtures" / "scenes.tar.xz")
    table = frontier.frontier_table(study, run_summaries(study), "device_seconds")
    [row] = cells(table).to_dict("records")
    shown = [row[name] for name in ("Reached after (CPU-s)", "Times sooner (CPU-s)", "Times sooner (PFLOP)")]
    assert f"| {' | '.join(shown)} |\n" in (ROOT / "README.md").read_text()
