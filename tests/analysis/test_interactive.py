"""Charts show what the pictures show: the same points, intervals, names and colours."""

import base64

import numpy as np
import pytest
from test_artefacts import GAINS
from test_study import write_run, write_study

from analysis import curves, figures, statistics, style
from analysis.drawing import drawn
from analysis.interactive import chart
from analysis.page import _as_script
from analysis.study import load_study


def floats(packed: dict[str, str]) -> np.ndarray:
    assert packed["dtype"] == "f4"
    return np.frombuffer(base64.b64decode(packed["bdata"]), "<f4")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "s"
    write_study(path, methods=["flash", "full"], gain=GAINS, seeds=range(3))
    write_run(path / "late", method="full", seed=9, status="running", iterations=10)
    return load_study(path)


def test_a_chart_has_the_means_and_the_intervals_of_the_picture(study):
    made = chart(drawn(lambda ax: figures.reward_against_cost(ax, study)))
    [flash] = [line for line in made["lines"] if line.get("name", "").startswith("Flash")]
    final = curves.by_seed(curves.run_summaries(study), "flash", "final")
    expected = statistics.mean_estimate(final)
    assert floats(flash["x"])[-1] == pytest.approx(15.0)
    ends = [floats(flash[name])[-1] for name in ("y", "low", "high")]
    assert ends == pytest.approx([expected.value, expected.low, expected.high], rel=1e-5)
    assert flash["line"]["color"] == style.look("flash").color
    assert made["layout"]["xaxis"]["title"]["text"] == "Device-seconds (CPU-seconds)"


def test_a_run_that_is_not_averaged_is_switched_with_its_method_and_not_in_the_legend(study):
    lines = chart(drawn(lambda ax: figures.reward_against_cost(ax, study)))["lines"]
    [thin] = [line for line in lines if "name" not in line]
    assert thin["legendgroup"] == "full" and thin["showlegend"] is False
    assert floats(thin["x"])[-1] == pytest.approx(15.0)


def test_below_three_seeds_there_are_points_and_no_interval(tmp_path):
    small = load_study(write_study(tmp_path / "s", methods=["flash"], seeds=range(2), iterations=4, every=2))
    lines = chart(drawn(lambda ax: figures.reward_against_cost(ax, small)))["lines"]
    assert [line["mode"] for line in lines] == ["markers", "markers", "lines+markers"]
    assert not any("low" in line for line in lines)


def test_a_figure_of_bars_is_no_chart(study):
    bars = drawn(lambda ax: figures.cost_bars(ax, study, curves.run_summaries(study)), legend=False)
    assert chart(bars) is None


def test_a_name_is_text_in_the_legend_and_in_the_script(tmp_path):
    name = "<b>_x</script>"
    write_run(tmp_path / "s" / "a", method=name, iterations=4, every=2)
    made = chart(drawn(lambda ax: figures.reward_against_cost(ax, load_study(tmp_path / "s"))))
    assert made["lines"][-1]["name"] == "&lt;b&gt;_x&lt;/script&gt;, n=1"
    assert "<" not in _as_script(made)
