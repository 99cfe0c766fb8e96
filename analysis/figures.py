"""Draw reward against cost, training curves and cost bars. Every function draws on an `ax` and returns it.

A line is the mean over finished seeds at equal cost, and its band is the pointwise 95 % interval. With fewer than three
seeds there is no band, and the points of each seed are shown. Runs that have not completed are thin lines. A mean ends
where its shortest seed ends.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import curves, guarding, statistics, style
from analysis.curves import Curve
from analysis.study import Study

LONGEST_BESIDE_ANOTHER = 50  # characters of a legend's entry


def reward_against_cost(
    ax: Axes, study: Study, cost: str = "device_seconds", column: str = "reward_mean", label: str = "Evaluation reward"
) -> Axes:
    """Draw the reward, or another column, of the evaluations (EMA weights, ODE, fixed noise) against cumulative cost."""
    _draw_arms(ax, study, study.evaluations, cost, column)
    guarding.mark_first_flags(ax, study, cost, column)
    return _label(ax, study, cost, label)


def training_curves(
    ax: Axes, study: Study, cost: str = "device_seconds", column: str = "reward_mean", label: str = ""
) -> Axes:
    """Draw a column of the iteration records against cost, smoothed by a centred mean over 5 % of the iterations.

    Training rewards of methods with different SDE steps are not comparable: a full trajectory ends in SDE noise.
    """
    _draw_arms(ax, study, study.iterations, cost, column, smooth=smoothing_width(study.iterations), marked=False)
    return _label(ax, study, cost, label or "Training reward (smoothed)")


def means_and_seeds(study: Study, frame: pd.DataFrame, points: bool = True) -> str:
    """Say what the curves of a frame are, only of what is drawn. points: seeds and rings, of evaluations, not of iterations."""
    done = set(study.runs.loc[study.runs["finished"], "run"])
    apart = frame.loc[~frame["run"].isin(done), "run"].value_counts()
    seeds = frame[frame["run"].isin(done)].groupby("arm")["run"].nunique()
    few, many = (seeds < statistics.SMALLEST_N).any(), (seeds >= statistics.SMALLEST_N).any()
    words = {
        "Lines: means over seeds at equal cost.": many or few,
        "Bands: their pointwise 95 % intervals.": many,
        f"Points: the seeds, where there are fewer than {statistics.SMALLEST_N}.": few and points,
        "Rings: where a guard first holds in a run.": points and len(study.finished(guarding.flagged(study))) > 0,
        "Thin lines: runs that are not averaged, see the notes.": (apart > 1).any(),
    }
    return " ".join(text for text, holds in words.items() if holds)


def smoothing_width(iterations: pd.DataFrame) -> int:
    """Return the width of the smoothing: an odd number of records, about 5 % of the longest run."""
    longest = iterations["iteration"].max() if len(iterations) else 0
    return max(1, int(longest) // 20) | 1


def cost_bars(ax: Axes, study: Study, summaries: pd.DataFrame) -> Axes:
    """Draw the device-seconds of an iteration by phase and method, with the factor to Flash-GRPO, paired by seed.

    Only wall time is measured by phase, so device-seconds are divided among the phases in proportion to it.
    """
    arms = style.ordered(summaries["arm"])
    shades = {"rollout": 1.0, "decode": 0.8, "update": 0.62, "reward": 0.32}
    means = {arm: curves.phase_seconds(summaries[summaries["arm"] == arm]).mean() for arm in arms}
    phases = [phase for phase in curves.PHASES if f"seconds.{phase}" in summaries]
    for row, arm in enumerate(arms):
        left = 0.0
        for phase, seconds in means[arm].items():
            ax.barh(row, seconds, left=left, height=0.62, color=style.look(arm).color, alpha=shades[phase], linewidth=0)
            left += seconds
        factor = curves.times_reference(summaries, arm).mean()
        times = f"  ({factor:.2f}×)" if np.isfinite(factor) else ""
        note = f" {f'{left:.3g}' if left < 1000 else f'{left:,.0f}'} s{times}"
        ax.text(left, row, note, va="center", fontsize=8, color="#333333")
    for phase in phases:
        ax.barh(np.nan, np.nan, color="#444444", alpha=shades[phase], label=phase)
    ax.set_yticks(range(len(arms)), [f"{style.look(arm).short}  n={np.sum(summaries['arm'] == arm)}" for arm in arms])
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.margins(x=0.28)
    ax.set_xlabel("Device-seconds per iteration (mean over seeds)")
    if arms:
        ax.legend(ncols=len(phases), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
    return ax


def _draw_arms(
    ax: Axes, study: Study, frame: pd.DataFrame, cost: str, column: str, smooth: int = 1, marked: bool = True
) -> None:
    finished = set(study.runs.loc[study.runs["finished"], "run"])
    for index, arm in enumerate(style.ordered(frame["arm"])):
        rows = frame[frame["arm"] == arm]
        done = rows["run"].isin(finished)
        for curve in curves.seed_curves(rows[~done], cost, column, smooth):
            ax.plot(curve.cost, curve.value, color=style.look(arm).color, linewidth=0.7, alpha=0.6, gid=arm)
        if seeds := _held(study, rows[done], cost, column, smooth):
            _draw_mean(ax, seeds, arm, index, marked)


def _held(study: Study, rows: pd.DataFrame, cost: str, column: str, smooth: int) -> list[Curve]:
    """Return the curves of an arm's runs; one that a guard ended early keeps its last value as far as the longest goes."""
    stopped = rows["run"].isin(study.runs.loc[study.runs["stopped"].astype(bool), "run"])
    whole, early = (curves.seed_curves(some, cost, column, smooth) for some in (rows[~stopped], rows[stopped]))
    end = max((curve.cost[-1] for curve in (*whole, *early)), default=0.0)
    return [*whole, *(curve.held_to(end) for curve in early)]


def _draw_mean(ax: Axes, seeds: list[Curve], arm: str, index: int, marked: bool) -> None:
    look = style.look(arm)
    grid, values_SG = curves.on_common_grid(seeds)
    line = look.line_style | {"label": look.label(len(seeds))}
    ax.plot(grid, values_SG.mean(0), **line, markevery=(3 + 2 * index % 11, 16), zorder=3, gid=arm)
    low, high = statistics.mean_interval(values_SG)
    if len(seeds) >= statistics.SMALLEST_N:
        ax.fill_between(grid, low, high, color=look.color, alpha=0.14, linewidth=0, zorder=2, gid=arm)
    elif marked:
        for curve in seeds:
            points = {"color": look.color, "markersize": 3, "alpha": 0.5, "linewidth": 0, "gid": arm}
            ax.plot(curve.cost, curve.value, look.marker, **points)


def _label(ax: Axes, study: Study, cost: str, what: str) -> Axes:
    ax.set_xlabel(curves.cost_label(cost, study.on_cpu))
    ax.set_ylabel(what)
    ax.margins(x=0.02)
    return ax


def legend_below(ax: Axes, columns: int = 2) -> None:
    """Put the legend under the axes, where it hides no data."""
    handles, labels = ax.get_legend_handles_labels()
    columns = columns if max(map(len, labels), default=0) <= LONGEST_BESIDE_ANOTHER else 1
    if handles:
        ax.legend(handles, labels, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17), columnspacing=1.4)
