"""Make the panels of quantities beside the reward: of evaluations, and of training. What never changes is said, not drawn."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, plain, readings, stability
from analysis.drawing import drawn
from analysis.shown import Material, Shown
from analysis.study import Study

PART = "reward_parts."
MOST_PARTS = 8  # of a reward, drawn
ROUNDING = 1e-12  # a quantity that varies by less is constant
EVALUATED = {"held_out": "Held-out reward", "diversity": "Diversity", "base_distance": "Distance from the base"}


def evaluation_panels(given: Material) -> Iterator[Shown]:
    """Yield the reward's parts, the held-out reward, the videos' diversity and the distance from the base, against cost."""
    for suffix, words, study in given.by_noise():
        found, constant = _varying(study.evaluations, _parts(study) | EVALUATED)
        for index, (column, label) in enumerate(found.items()):
            name = f"reward_part_{index + 1}" if column.startswith(PART) else column
            yield Shown(
                name=f"{name}{suffix}",
                title=f"{label}{words}",
                caption=figures.means_and_seeds(study, study.evaluations),
                figure=_drawn(study, given.cost, column, label),
                reading=readings.of_curves(
                    readings.HOW.get(column, readings.PARTS), study, study.evaluations, given.cost, column
                ),
            )
        yield from _not_drawn(constant, f"constant_evaluations{suffix}", words)


def _drawn(study: Study, cost: str, column: str, label: str) -> Figure:
    return drawn(lambda ax: figures.reward_against_cost(ax, study, cost, column, label))


def _parts(study: Study) -> dict[str, str]:
    """Return the columns of the reward's parts with their labels; none for a reward of a single part, which is its whole."""
    found = [name for name in study.evaluations if name.startswith(PART) and study.evaluations[name].notna().any()]
    parts = found[:MOST_PARTS] if len(found) > 1 else []
    return {name: f"Reward part: {plain.name(name.removeprefix(PART))}" for name in parts}


def training_panels(given: Material) -> Iterator[Shown]:
    """Yield gradient norm, ratio drift, clip fraction, KL and spread over the iterations."""
    for suffix, words, study in given.by_noise():
        smooth = figures.smoothing_width(study.iterations)
        caption = f"{figures.means_and_seeds(study, study.iterations, points=False)} Smoothed over {smooth} iterations."
        columns = stability.PANELS | stability.FURTHER_PANELS
        found, constant = _varying(study.iterations, columns)
        for column, label in found.items():
            yield Shown(
                name=f"{column}{suffix}",
                title=f"{label}{words}",
                caption=caption,
                figure=drawn(lambda ax, study=study, column=column: stability.stability_curves(ax, study, column)),
                reading=readings.of_curves(readings.HOW[column], study, study.iterations, "iterations", column, smooth),
            )
        yield from _not_drawn(constant, f"constant_iterations{suffix}", words)


def _varying(frame: pd.DataFrame, columns: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the columns that vary, with their labels, and for each that does not its label with its value."""
    found, constant = {}, []
    for column, label in columns.items():
        values = frame[column].dropna() if column in frame else frame.iloc[:0]
        if len(values) and values.max() - values.min() > ROUNDING:
            found[column] = label
        elif len(values):
            constant.append(f"{label} {values.iloc[0]:.4g}")
    return found, constant


def _not_drawn(constant: list[str], name: str, words: str) -> Iterator[Shown]:
    if constant:
        yield Shown(name=name, title="Not drawn", caption=f"The same in every record{words}: {'; '.join(constant)}.")
