"""Show which seeds collapsed, and gradient norm, ratio drift and clip fraction of the updates.

A seed *collapsed* if it failed on rewards or weights that were not finite, or if its last evaluation lies below its
first one: the whole 95 % interval of the difference, paired over prompts, below 0. A seed *fell back* if its last
evaluation has lost more than half of the gain of its best one.
"""

import pandas as pd
from matplotlib.axes import Axes

from analysis import curves, figures, style
from analysis.statistics import mean_estimate, share_estimate
from analysis.study import Study

NOT_FINITE = r"finite|\bnan\b|\binf|diverge"
PANELS = {
    "gradient_norm": "Gradient norm (before clipping)",
    "ratio_drift": "Ratio drift (before the update)",
    "clip_fraction": "Clip fraction",
}
FURTHER_PANELS = {
    "approx_kl": "KL of the update (approximate)",
    "base_kl": "KL to the base",
    "within_group_std": "Reward std within groups",
    "groups_without_spread": "Share of groups without spread",
}
LOGARITHMIC = ("gradient_norm", "ratio_drift")


def run_outcomes(study: Study) -> pd.DataFrame:
    """Return one row per run that has ended: whether it collapsed, fell back (see the module's definitions) or failed."""
    evaluations = dict(list(study.evaluations.groupby("run", sort=False)))
    rows = []
    for run in study.runs[study.runs["status"].isin(["completed", "failed"]) | study.runs["finished"]].itertuples():
        some, failed = evaluations.get(run.run), run.status == "failed"
        blew_up = failed and bool(pd.Series(run.reason).str.contains(NOT_FINITE, case=False).item())
        collapsed = blew_up or _ended_below_base(some)
        rows.append((run.run, run.arm, run.noise, collapsed, _fell_back(some), failed))
    return pd.DataFrame(rows, columns=["run", "arm", "noise", "collapsed", "fell_back", "failed"])


def _ended_below_base(evaluations: pd.DataFrame | None) -> bool:
    if evaluations is None or len(evaluations) < 2:
        return False
    first, last = evaluations["prompt_rewards"].iloc[0] or {}, evaluations["prompt_rewards"].iloc[-1] or {}
    return bool(curves.prompt_gain(first, last).high < 0)


def _fell_back(evaluations: pd.DataFrame | None) -> bool:
    if evaluations is None or len(evaluations) < 2:
        return False
    rewards = evaluations["reward_mean"].dropna().to_numpy()
    gain = rewards.max() - rewards[0]
    return bool(gain > 0 and rewards[-1] - rewards[0] < gain / 2)


def stability(study: Study) -> pd.DataFrame:
    """Return the stability table: a row per method, with shares of seeds and their Wilson intervals."""
    outcomes = run_outcomes(study)
    per_run = study.iterations.groupby("run", sort=False)
    largest, mean = per_run[list(PANELS)].max(), per_run[list(PANELS)].mean()
    rows = []
    for noise, part in curves.by_noise(outcomes):
        for arm in style.ordered(part["arm"]):
            some = part[part["arm"] == arm]
            runs = [run for run in some["run"] if run in mean.index]
            rows.append(
                {
                    "Method": style.look(arm).name,
                    "SDE noise": noise,
                    "n": len(some),
                    "collapsed": f"{some['collapsed'].sum()} of {len(some)}",
                    "share collapsed": share_estimate(int(some["collapsed"].sum()), len(some)),
                    "fell back": f"{some['fell_back'].sum()} of {len(some)}",
                    "failed": f"{some['failed'].sum()} of {len(some)}",
                    "Gradient norm": mean_estimate(mean.loc[runs, "gradient_norm"]),
                    "Clip fraction": mean_estimate(mean.loc[runs, "clip_fraction"]),
                    "Largest ratio drift": float(largest.loc[runs, "ratio_drift"].max()),
                }
            )
    return pd.DataFrame(rows)


def stability_curves(ax: Axes, study: Study, column: str, cost: str = "iterations") -> Axes:
    """Draw one of `PANELS` or FURTHER_PANELS over the course of the runs, with mean and band over seeds."""
    figures.training_curves(ax, study, cost, column, (PANELS | FURTHER_PANELS)[column])
    values = study.iterations[column].dropna()
    if column in LOGARITHMIC and len(values) and 0 < values.min() < values.max():
        ax.set_yscale("log")
        style.plain_log_labels(ax.yaxis)
    return ax
