"""Draw what reward costs: in cost and diversity at Flash-GRPO's final reward, and in diversity along the way."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

from analysis import curves, frontier, statistics, style
from analysis.frontier import Reached
from analysis.study import Study


def reached_figure(ax: Axes, found: list[Reached], study: Study, cost: str) -> Axes:
    """Draw each arm that reaches Flash's reward: the cost and the diversity there, and the steps of the Pareto front."""
    arrived = sorted((one for one in found if np.isfinite(one.cost)), key=lambda one: one.cost)
    for one in arrived:
        _draw_place(ax, one)
    front = [one for one in arrived if frontier.on_front(one, found)]
    places = [(one.cost, one.diversity.value) for one in front]
    ax.step(*zip(*places, strict=True), where="post", color="#999999", linewidth=1, zorder=1)
    ax.set_xscale("log")
    ax.margins(x=0.18, y=0.12)
    style.plain_log_labels(ax.xaxis)
    ax.set_xlabel(f"{curves.cost_label(cost, study.on_cpu)} to Flash-GRPO's final reward")
    ax.set_ylabel("Diversity there")
    return ax


def _draw_place(ax: Axes, one: Reached) -> None:
    item = style.look(one.arm)
    x, y = one.cost, one.diversity
    if np.isfinite(y.low):
        ax.plot([x, x], [y.low, y.high], color=item.color, linewidth=1.4, zorder=2)
    ax.plot(
        x,
        y.value,
        item.marker,
        color=item.color,
        markersize=7,
        markeredgecolor="white",
        zorder=3,
        label=item.label(y.n),
    )


def tradeoff(ax: Axes, study: Study, cost: str) -> Axes:
    """Draw each arm's way from the base: mean diversity against mean reward, its end with 95 % intervals."""
    for arm in style.ordered(study.evaluations["arm"]):
        rows = study.finished(study.evaluations)
        rows = rows[rows["arm"] == arm]
        pair = [curves.seed_curves(rows, cost, column) for column in ("reward_mean", "diversity")]
        if all(pair):
            reward_SG, diversity_SG = (curves.on_common_grid(some)[1] for some in pair)
            _draw_way(ax, arm, reward_SG, diversity_SG)
    ax.margins(x=0.08)
    ax.set_xlabel("Evaluation reward")
    ax.set_ylabel("Diversity")
    return ax


def _draw_way(ax: Axes, arm: str, reward_SG: np.ndarray, diversity_SG: np.ndarray) -> None:
    look = style.look(arm)
    x, y = reward_SG.mean(0), diversity_SG.mean(0)
    ax.plot(
        x,
        y,
        color=look.color,
        linestyle=look.line,
        linewidth=1.1,
        marker=look.marker,
        markevery=[len(x) - 1],
        markersize=6,
        markeredgecolor="white",
        zorder=4,
        label=look.label(len(reward_SG)),
        gid=arm,
    )
    if len(reward_SG) >= statistics.SMALLEST_N:
        for values_SG, horizontal in ((reward_SG, True), (diversity_SG, False)):
            ends = [float(end[-1]) for end in statistics.mean_interval(values_SG)]
            line = (ends, [y[-1], y[-1]]) if horizontal else ([x[-1], x[-1]], ends)
            ax.plot(*line, color=look.color, linewidth=1.0, alpha=0.8, zorder=3)


def unbeaten(found: Iterable[Reached]) -> str:
    """Say which arms nobody beats, and which do not reach the reward."""
    found = list(found)
    groups = {
        "Beaten by none": [one for one in found if frontier.on_front(one, found)],
        "Never at that reward": [one for one in found if not np.isfinite(one.cost)],
    }
    return " ".join(
        f"{words}: {', '.join(style.look(one.arm).short for one in some)}." for words, some in groups.items() if some
    )
