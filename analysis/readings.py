"""Say in two sentences how to read a figure and what it shows of this study. The second one follows from the data drawn."""

import numpy as np
import pandas as pd

from analysis import curves, mechanism, style
from analysis.statistics import Estimate
from analysis.study import Study

AT_EQUAL_COST = (
    "Compare methods at one place of the cost axis; of two lines, the upper one has got more for the same cost."
)
NOT_BETWEEN = "Follow one line from left to right; the heights of two methods' lines do not compare."
HOW = {
    "held_out": "No run trains on it: where it falls while the reward rises, a method earns what the reward does not see.",
    "diversity": "Where it falls, the videos of one prompt become alike.",
    "base_distance": "Where it rises, the model leaves the one that training began with.",
    "gradient_norm": "Spikes are unsteady updates, and a line that rises towards the end is a warning.",
    "ratio_drift": "0 says that rollout and update compute a step alike; above the clipping range, rounding would be trained.",
    "clip_fraction": "Clipped transitions train nothing; a large share says that updates are too large.",
    "approx_kl": "It says how far the updates of one iteration move the policy.",
    "base_kl": "It is what the penalty of `kl_weight` acts on.",
    "within_group_std": "Without spread within a group there is nothing to learn from it.",
    "groups_without_spread": "Such groups train nothing.",
}
PARTS = "A part that rises with the reward has made its gain; one that falls was paid for it."


def ends(
    study: Study, frame: pd.DataFrame, cost: str, column: str = "reward_mean", smooth: int = 1
) -> dict[str, float]:
    """Return the height at which each arm's mean curve ends, by its short name."""
    done = study.finished(frame)
    by_arm = {
        arm: curves.seed_curves(done[done["arm"] == arm], cost, column, smooth) for arm in style.ordered(done["arm"])
    }
    return {
        style.look(arm).short: float(curves.on_common_grid(some)[1].mean(0)[-1]) for arm, some in by_arm.items() if some
    }


def of_curves(
    how: str, study: Study, frame: pd.DataFrame, cost: str, column: str = "reward_mean", smooth: int = 1
) -> str:
    """how: the first sentence. smooth: as the curves are drawn."""
    return f"{how} {_extremes(ends(study, frame, cost, column, smooth), 'ends')}".strip()


def of_training(study: Study, cost: str, smooth: int) -> str:
    done = study.finished(study.iterations)
    rises = {}
    for arm in style.ordered(done["arm"]):
        if some := curves.seed_curves(done[done["arm"] == arm], cost, smooth=smooth):
            mean_G = curves.on_common_grid(some)[1].mean(0)
            rises[style.look(arm).short] = float(mean_G[-1] - mean_G[0])
    return f"{NOT_BETWEEN} {_extremes(rises, 'rises', ('most, by', 'least, by'))}".strip()


def of_costs(summaries: pd.DataFrame) -> str:
    each = curves.seconds_per_iteration(summaries).groupby(summaries["arm"]).mean()
    named = {style.look(arm).short: float(seconds) for arm, seconds in each.items()}
    how = "A longer bar is a dearer iteration, and its shades say in which phase."
    return f"{how} {_extremes(named, 'has', ('the longest, of', 'the shortest, of'))}".strip()


def of_differences(table: pd.DataFrame) -> str:
    """table: `ablation.differences_from_flash` of one SDE."""
    estimates = dict(zip(table["Method"], table.iloc[:, 3], strict=True))
    groups = {
        "above 0": [name for name, item in estimates.items() if item.low > 0],
        "below 0": [name for name, item in estimates.items() if item.high < 0],
        "across 0": [name for name, item in estimates.items() if item.low <= 0 <= item.high],
    }
    found = "; ".join(f"{words}: {', '.join(names)}" for words, names in groups.items() if names)
    how = "A method whose interval lies right of the line has gained more than Flash-GRPO, one that crosses it may have not."
    return f"{how} Intervals {found}." if found else how


def of_gradients(measurements: pd.DataFrame, noise: str) -> str:
    table = mechanism.gradient_table(measurements[measurements["noise"] == noise])
    found = [
        f"{row['Slope (1: proportional)'].value:.2f} ({row['Weights']}, steps {row['Steps']})"
        for _, row in table.iterrows()
    ]
    how = "Points along the dashed line say that a step's gradient is as large as λ says; a flat row, that it does not matter."
    return f"{how} Slopes: {', '.join(found)}." if found else how


def of_alignment(table: pd.DataFrame, column: str) -> str:
    """table: `mechanism.alignment_table` of one SDE."""
    how = "Right is better: such an iteration's gradient points along the exact one, for its cost if the axis says so."
    return f"{how} {_extremes(_by_name(table, column), 'lies', ('furthest right, at', 'furthest left, at'))}".strip()


def of_shares(table: pd.DataFrame) -> str:
    """table: `mechanism.variance_shares`."""
    shares = [name for name in table if name.endswith("(share)")]
    largest = [
        f"{max(shares, key=lambda name: row[name].value).removesuffix(' (share)')} ({row['SDE noise']} SDE)"
        for row in table.dropna(subset=shares).to_dict("records")
    ]
    how = "A source far to the right explains much of why siblings of one prompt are rewarded differently."
    return f"{how} Largest: {', '.join(largest)}." if largest else how


def _by_name(table: pd.DataFrame, column: str) -> dict[str, float]:
    found: dict[str, Estimate] = dict(zip(table["Method"], table[column], strict=True))
    return {name: item.value for name, item in found.items()}


def _extremes(values: dict[str, float], verb: str, degrees: tuple[str, str] = ("highest, at", "lowest, at")) -> str:
    """Return `X ends highest, at 2.5, and Y lowest, at 2.1.`; '' of fewer than two numbers."""
    known = {name: value for name, value in values.items() if np.isfinite(value)}
    if len(known) < 2:
        return ""
    high, low = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
    if known[high] == known[low]:
        return ""
    return f"{high} {verb} {degrees[0]} {known[high]:.4g}, and {low} {degrees[1]} {known[low]:.4g}."
