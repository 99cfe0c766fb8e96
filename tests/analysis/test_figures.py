"""The look of figures: one colour a method, told apart by everyone, nothing overlapping; and what the lines mean."""

import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from test_artefacts import GAINS, measurements
from test_study import METHODS, write_run, write_study

from analysis import curves, figures, sections, statistics, style
from analysis.drawing import drawn
from analysis.study import load_study

matplotlib.use("Agg")
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# Machado et al. 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colours: list[str], vision: str) -> np.ndarray:
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    part = seen @ XYZ.T / [0.9505, 1.0, 1.089]
    f = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


COLOURS = [look.color for look in style.METHODS.values()]


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_two_methods_are_never_confused(vision):
    seen = lab(COLOURS, vision)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 25


def test_colours_stay_apart_in_greyscale():
    lightness = np.sort(lab(COLOURS, "normal")[:, 0])
    assert np.diff(lightness).min() > 7


def test_markers_and_lines_tell_methods_apart_without_colour():
    looks = style.METHODS.values()
    assert len({look.marker for look in looks}) == len(looks)
    assert len({str(look.line) for look in looks}) >= len(looks) - 2


def test_every_ablation_has_a_look_of_its_own():
    names = {path.stem for path in (Path(__file__).parents[2] / "ablations").glob("*.yaml")}
    renamed = {"full_trajectory": "full", "sliding_window": "window", "none": "flash"}
    assert {renamed.get(name, name) for name in names} == set(style.NAMED)
    looks = [(look.color, look.marker) for look in style.NAMED.values()]
    assert len(set(looks)) == len(looks)


def test_an_unknown_method_always_looks_the_same_and_a_setting_keeps_its_methods_colour():
    assert style.look("my_method") == style.look("my_method")
    assert style.look("flash optim.lr=0.0003").color == style.look("flash").color
    assert style.look("flash optim.lr=0.0003").name == "Flash-GRPO (ITG + TGR), lr=0.0003"
    assert style.look("flash optim.lr=0.0003") != style.look("flash optim.lr=0.0001")


@pytest.mark.parametrize("arm", [*style.NAMED, "flash optim.lr=0.0003", "my_method", "my_method optim.lr=1"])
def test_a_display_name_leads_back_to_the_same_look(arm):
    assert style.look_named(style.look(arm).name) == style.look(arm)


def test_a_method_of_ones_own_may_begin_like_another():
    for name in ("PCPO2", "DiffusionNFT-mine", "Naive one-step again"):
        assert style.look_named(style.look(name).name).name == name


def test_methods_stand_in_the_papers_order_whatever_order_they_were_run_in():
    assert style.ordered(["zebra", "flash", "shared_noise", "no_iso_temporal", "full", "no_rectification"]) == [
        "full",
        "no_rectification",
        "no_iso_temporal",
        "flash",
        "shared_noise",
        "zebra",
    ]


def test_settings_stand_in_the_order_of_their_values():
    arms = ["flash optim.lr=0.0001", "flash optim.lr=3e-05", "flash", "flash optim.lr=0.001"]
    assert style.ordered(arms) == ["flash", "flash optim.lr=3e-05", "flash optim.lr=0.0001", "flash optim.lr=0.001"]


def draw(path, cost="device_seconds", **options):
    study = load_study(write_study(path, gain=GAINS, **options))
    return figures.reward_against_cost(Figure().subplots(), study, cost), study


def line(ax, start: str):
    [curve] = [item for item in ax.get_lines() if item.get_label().startswith(start)]
    return curve


def test_a_line_is_the_mean_over_seeds_and_its_band_their_interval(tmp_path):
    ax, study = draw(tmp_path / "s")
    assert isinstance(ax, matplotlib.axes.Axes)
    final = curves.by_seed(curves.run_summaries(study), "flash", "final")
    assert line(ax, "Flash-GRPO (ITG + TGR)").get_ydata()[-1] == pytest.approx(final.mean())
    estimate = statistics.mean_estimate(final)
    ends = [band.get_paths()[0].vertices for band in ax.collections]
    assert any(np.isclose(end[:, 1], estimate.low).any() and np.isclose(end[:, 1], estimate.high).any() for end in ends)
    assert len(ax.collections) == 7


def test_below_three_seeds_there_are_points_and_no_band(tmp_path):
    ax, _ = draw(tmp_path / "s", methods=["flash"], seeds=range(2))
    assert len(ax.collections) == 0
    points = [item for item in ax.get_lines() if item.get_linestyle() == "None" or item.get_linewidth() == 0]
    assert len(points) == 2


def test_a_mean_ends_where_its_first_seed_ends(tmp_path):
    write_run(tmp_path / "s" / "a", seed=0)
    write_run(tmp_path / "s" / "b", seed=1, iterations=10)
    write_run(tmp_path / "s" / "c", seed=2)
    ax = figures.reward_against_cost(Figure().subplots(), load_study(tmp_path / "s"))
    assert line(ax, "Flash").get_xdata()[-1] == pytest.approx(7.5)


def test_an_unfinished_run_is_a_thin_line_and_not_in_the_mean(tmp_path):
    write_study(tmp_path / "s", methods=["flash"], seeds=range(3), spread=0.0)
    write_run(tmp_path / "s" / "x", seed=9, gain=9.0, status="running")
    ax = figures.reward_against_cost(Figure().subplots(), load_study(tmp_path / "s"))
    assert line(ax, "Flash").get_ydata().max() < 2.1
    assert max(item.get_ydata().max() for item in ax.get_lines() if item.get_linewidth() < 1) > 9


@pytest.mark.parametrize(
    ("cost", "label", "end"),
    [
        ("device_seconds", "Device-seconds (CPU-seconds)", 15.0),
        ("device_hours", "Device-hours (CPU-hours)", 15 / 3600),
        ("gpu_days", "Device-days (CPU-days)", 15 / 86400),
        ("pflop", "PFLOP", 0.2),
        ("forward_evaluations", "Transformer forwards (samples)", 25600),
        ("iterations", "Iterations", 20),
    ],
)
def test_every_cost_axis_has_its_unit(tmp_path, cost, label, end):
    ax, _ = draw(tmp_path / "s", cost, methods=["flash"], seeds=range(3))
    assert ax.get_xlabel() == label
    assert line(ax, "Flash").get_xdata()[-1] == pytest.approx(end)


def test_on_accelerators_the_axis_says_gpu(tmp_path):
    run = write_run(tmp_path / "s" / "a")
    manifest = json.loads((run / "run.json").read_text())
    manifest["hardware"] = {"device_type": "cuda", "device": "NVIDIA H200"}
    (run / "run.json").write_text(json.dumps(manifest))
    ax = figures.reward_against_cost(Figure().subplots(), load_study(tmp_path / "s"), "device_hours")
    assert ax.get_xlabel() == "GPU-hours"


@pytest.fixture(scope="module")
def every_figure(tmp_path_factory):
    """Every figure of a full study with both SDEs, seven methods, a failed run and mechanism measurements."""
    path = tmp_path_factory.mktemp("runs")
    for noise in ("linear", "flow"):
        write_study(path / noise, noise=noise, gain=GAINS, seeds=range(3))
    write_run(path / "linear" / "bad", method="window", seed=9, status="failed", reason="reward is not finite")
    measurements(path / "linear")
    given = sections.material(load_study(path / "linear", path / "flow"), "device_seconds")
    return {item.name: item.figure for part in sections.all_sections(given) for item in part.shown if item.figure}


def test_the_report_has_all_the_figures_of_the_issue(every_figure):
    expected = {"reward_against_device_seconds", "reward_against_pflop", "training_against_device_seconds"}
    expected |= {"gradient_norm", "ratio_drift", "clip_fraction", "difference_forest", "fig4", "fig5"}
    expected |= {"cost_per_iteration", "reached"}
    expected = {f"{name}_{noise}" for name in expected for noise in ("linear", "flow")}
    expected |= {
        "gradient_against_lambda_linear",
        "cosine_linear",
        "cosine_per_device_second_linear",
        "variance_by_source",
    }
    assert set(every_figure) == expected


def test_no_two_texts_of_a_figure_overlap(every_figure):
    for name, figure in every_figure.items():
        with style.figure_style():
            FigureCanvasAgg(figure).draw()
            boxes = text_boxes(figure)
        for (first, a), (second, b) in itertools.combinations(boxes, 2):
            assert not a.overlaps(b), f"{name}: {first!r} and {second!r} overlap"


def text_boxes(figure: Figure) -> list:
    """The extents of all texts that are drawn, a pixel smaller on every side."""
    hidden = {text for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for text in labels_out_of_view(axis)}
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts if text not in hidden]


def labels_out_of_view(axis) -> set:
    """Tick labels beyond the limits of the axis: matplotlib keeps them and does not draw them."""
    drawn = axis._update_ticks()
    return {text for tick in axis.get_major_ticks() if tick not in drawn for text in (tick.label1, tick.label2)}


@pytest.mark.filterwarnings("error")
def test_names_with_an_underscore_first_stand_in_the_legend_and_wide_characters_do_not_warn(tmp_path):
    study = load_study(write_study(tmp_path / "s", methods=["_hidden", "猫"], seeds=range(2), iterations=4, every=2))
    figure = drawn(lambda ax: figures.reward_against_cost(ax, study))
    with style.figure_style():
        figure.savefig(tmp_path / "figure.png")
    legend = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["_hidden, n=2", "猫, n=2"]
    assert ("猫" in style.undrawable(["_hidden", "猫"])) == (len(style.families()) == 1)


def test_a_caption_speaks_of_thin_lines_bands_and_points_only_where_there_are_any(tmp_path):
    study = load_study(write_study(tmp_path / "s", methods=["flash"], seeds=range(3), iterations=4, every=2))
    words = figures.means_and_seeds(study, study.evaluations)
    assert "Bands" in words and not {"Thin", "Points:", "Rings:"} & {*words.split()}
    write_run(tmp_path / "s" / "late", method="full", status="running", iterations=4, every=2)
    write_run(tmp_path / "s" / "two", method="window", iterations=4, every=2)
    study = load_study(tmp_path / "s")
    words = figures.means_and_seeds(study, study.evaluations)
    assert "Bands" in words and "Thin lines" in words and "Points" in words


def test_a_method_has_the_same_colour_in_every_figure(every_figure):
    for figure in every_figure.values():
        for ax in figure.axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                method = next((name for name in METHODS if label.startswith(style.look(name).name + ",")), None)
                if method:
                    assert handle.get_color() == style.look(method).color
