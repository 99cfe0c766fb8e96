"""How much sooner than Flash-GRPO a method reaches its reward, on curves with known answers."""

import numpy as np
import pytest
from test_study import write_study

from analysis import frontier
from analysis.curves import run_summaries
from analysis.study import load_study

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


def test_the_table_has_a_row_for_each_method_beside_flash(study):
    table = frontier.frontier_table(study, run_summaries(study), "device_seconds").set_index("Method")
    assert sorted(table.index) == ["fast", "slow"]
    assert table.loc["fast", "Times sooner (PFLOP)"].text() != "–"
    assert table.loc["slow", "Times sooner (PFLOP)"].text() == "–"
    assert table.loc["slow", "Diversity there"].text() == "–"


def test_without_flash_there_is_no_table(tmp_path):
    study = load_study(write_study(tmp_path / "alone", ["full"], range(3)))
    assert frontier.frontier_table(study, run_summaries(study), "device_seconds").empty
