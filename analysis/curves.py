"""Turn a study's data frames into curves with seeds as rows, and into one row of numbers per finished run."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import statistics, style
from analysis.study import Study

# cost axis -> (column of the records, divisor, (axis label, unit), the same if device-seconds are CPU seconds, or None);
# estimated_hours is of a priced study, see `pricing`
COSTS = {
    "device_seconds": (
        "cost.device_seconds",
        1.0,
        ("Device-seconds", "device-s"),
        ("Device-seconds (CPU-seconds)", "CPU-s"),
    ),
    "device_hours": ("cost.device_seconds", 3600.0, ("GPU-hours", "GPU-h"), ("Device-hours (CPU-hours)", "CPU-h")),
    "gpu_days": ("cost.device_seconds", 86400.0, ("GPU-days", "GPU-days"), ("Device-days (CPU-days)", "CPU-days")),
    "estimated_hours": ("cost.device_seconds", 3600.0, ("Estimated device-hours", "estimated device-h"), None),
    "pflop": ("cost.pflop", 1.0, ("PFLOP", "PFLOP"), None),
    "forward_evaluations": ("cost.forward_evaluations", 1.0, ("Transformer forwards (samples)", "forwards"), None),
    "iterations": ("iteration", 1.0, ("Iterations", "iterations"), None),
}


def cost_values(frame: pd.DataFrame, cost: str) -> pd.Series:
    """Return the cumulative cost of each record, in the unit of the axis."""
    column, divisor, *_ = COSTS[cost]
    return frame[column] / divisor


def cost_label(cost: str, on_cpu: bool) -> str:
    return _words(cost, on_cpu)[0]


def cost_unit(cost: str, on_cpu: bool) -> str:
    return _words(cost, on_cpu)[1]


def cost_name(cost: str, on_cpu: bool) -> str:
    """Return the axis label as it stands inside a title: `device-seconds (CPU-seconds)`, `GPU-days`."""
    label = cost_label(cost, on_cpu)
    return label if label[:2].isupper() else label[0].lower() + label[1:]


def _words(cost: str, on_cpu: bool) -> tuple[str, str]:
    *_, on_accelerator, on_processor = COSTS[cost]
    return on_processor if on_cpu and on_processor else on_accelerator


PHASES = ("rollout", "decode", "reward", "update")
REWARDS = ("base", "final", "best", "gain", "at_budget", "area", "spent", "device_seconds", "held_out")


@dataclass(frozen=True)
class Curve:
    """One run's curve: values against ascending costs, without missing values."""

    seed: object
    cost: np.ndarray
    value: np.ndarray

    def held_to(self, cost: float) -> "Curve":
        """Return the curve with its last value kept up to a cost beyond its end."""
        if not len(self.cost) or not cost > self.cost[-1]:
            return self
        return Curve(self.seed, np.append(self.cost, cost), np.append(self.value, self.value[-1]))


def seed_curves(frame: pd.DataFrame, cost: str, column: str = "reward_mean", smooth: int = 1) -> list[Curve]:
    """Return a curve for each run of `frame`. smooth: the width of a centred mean, in records."""
    curves = []
    for _, run in frame.assign(_cost=cost_values(frame, cost)).groupby("run", sort=False):
        run = run[np.isfinite(run["_cost"]) & np.isfinite(run[column])].sort_values("_cost")
        if len(run):
            value = run[column].rolling(smooth, center=True, min_periods=1).mean() if smooth > 1 else run[column]
            curves.append(Curve(run["seed"].iloc[0], run["_cost"].to_numpy(), value.to_numpy()))
    return curves


def on_common_grid(curves: list[Curve], points: int = 81) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of costs that every seed has reached [G] and the seeds' values there [S, G], linear between records."""
    start, end = max(curve.cost[0] for curve in curves), min(curve.cost[-1] for curve in curves)
    grid = np.linspace(start, end, points) if end > start else np.array([start])
    return grid, np.stack([np.interp(grid, curve.cost, curve.value) for curve in curves])


def equal_budget(study: Study, cost: str = "device_seconds") -> float:
    """Return the largest cost at or beyond which every finished run has an evaluation; NaN if there is no finished run.

    Runs that were given less than the others do not lower it, see `run_summaries`.
    """
    evaluations = study.finished(study.evaluations)
    whole = evaluations["run"].isin(study.runs.loc[~study.runs["short"].astype(bool), "run"])
    evaluations = evaluations[whole] if whole.any() else evaluations
    evaluations = evaluations[np.isfinite(evaluations["reward_mean"])]
    last = cost_values(evaluations, cost).groupby(evaluations["run"]).max()
    return float(last.min()) if len(last) else np.nan


def run_summaries(study: Study, cost: str = "device_seconds", budget: float | None = None) -> pd.DataFrame:
    """Return one row per finished run. Rewards are evaluation rewards (EMA weights, ODE, fixed noise); costs are cumulative.

    base, final, best: reward at iteration 0, at the last and at the best evaluation. gain: final - base. at_budget: reward
    at `budget` (default: `equal_budget` of all runs); a run that was given a share of the budget alone keeps its last one.
    area: mean height of the curve up to the budget. seconds.*: median wall seconds of an iteration by phase, because a run
    that was paused or shared its cores has outliers. spent: the run's last cost in units of `cost`. held_out: the held-out
    reward at the last evaluation.
    """
    budget = equal_budget(study, cost) if budget is None else budget
    columns = ["run", "method", "arm", "noise", "seed", "short", "lr", "tuned", "on_cpu"]
    runs = study.runs.loc[study.runs["finished"], columns]
    evaluations = dict(list(study.finished(study.evaluations).groupby("run", sort=False)))
    ended = zip(runs["run"], runs["short"], strict=True)
    rewards = pd.DataFrame([_rewards(evaluations[run], cost, budget, short) for run, short in ended], columns=REWARDS)
    seconds = [name for name in study.iterations.columns if name.startswith("seconds.")]
    per_run = study.iterations.groupby("run", sort=False)
    medians = per_run[seconds].median().assign(iterations=per_run["iteration"].max()).reindex(runs["run"])
    return pd.concat([part.reset_index(drop=True) for part in (runs, rewards, medians)], axis=1).assign(budget=budget)


def seconds_per_iteration(summaries: pd.DataFrame) -> pd.Series:
    """Return the device-seconds of an iteration of each run, on average over the run."""
    return summaries["device_seconds"] / summaries["iterations"]


def times_reference(summaries: pd.DataFrame, arm: str, reference: str = "flash") -> pd.Series:
    """Return how many times the reference's device-seconds an iteration of the arm takes, paired by seed."""
    each = summaries.assign(each=seconds_per_iteration(summaries))
    return by_seed(each, arm, "each") / by_seed(each, reference, "each")


def phase_seconds(summaries: pd.DataFrame) -> pd.DataFrame:
    """Divide each run's device-seconds of an iteration among its phases: a column per phase, which add up to the whole.

    Wall seconds of rank 0 by phase give the shares, because records have had these from the first version on.
    """
    phases = [phase for phase in PHASES if f"seconds.{phase}" in summaries]
    wall = summaries[[f"seconds.{phase}" for phase in phases]].set_axis(phases, axis=1)
    return wall.div(wall.sum(axis=1), axis=0).mul(seconds_per_iteration(summaries), axis=0)


def _rewards(evaluations: pd.DataFrame, cost: str, budget: float, short: bool) -> dict[str, float]:
    [curve] = seed_curves(evaluations, cost) or [Curve(None, np.array([np.nan]), np.array([np.nan]))]
    held = curve.held_to(budget) if short else curve
    at_start = evaluations.loc[evaluations["iteration"] == 0, "reward_mean"]
    base = float(at_start.iloc[0]) if len(at_start) else np.nan
    return {
        "base": base,
        "final": curve.value[-1],
        "best": curve.value.max(),
        "gain": curve.value[-1] - base,
        "at_budget": statistics.value_at(held.cost, held.value, budget),
        "area": statistics.area_under_curve(held.cost, held.value, budget),
        "spent": curve.cost[-1],
        "device_seconds": evaluations["cost.device_seconds"].max(),
        "held_out": next(iter(evaluations["held_out"].dropna()[::-1]), np.nan),
    }


def prompt_rewards_at(study: Study, arm: str, cost: str, budget: float) -> pd.DataFrame:
    """Return the rewards at a budget, linear between evaluations: a row per finished seed of the arm, a column per prompt."""
    evaluations = study.finished(study.evaluations)
    rows = {}
    short = set(study.runs.loc[study.runs["short"].astype(bool), "run"])
    for name, run in evaluations[evaluations["arm"] == arm].groupby("run", sort=False):
        usable = run[run["prompt_rewards"].map(lambda value: isinstance(value, dict) and len(value) > 0)]
        if len(usable) and (name in short or cost_values(usable, cost).max() >= budget):
            rows[usable["seed"].iloc[0]] = _between_evaluations(usable, cost_values(usable, cost).to_numpy(), budget)
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_index()


def _between_evaluations(evaluations: pd.DataFrame, costs: np.ndarray, budget: float) -> dict[str, float]:
    position = np.interp(budget, costs, np.arange(len(costs)))
    before, share = int(position), position - int(position)
    first = evaluations["prompt_rewards"].iloc[before]
    second = evaluations["prompt_rewards"].iloc[min(before + 1, len(costs) - 1)]
    return {prompt: (1 - share) * first[prompt] + share * second[prompt] for prompt in first if prompt in second}


def by_noise(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split the rows by SDE noise schedule, linear first."""
    return [(noise, frame[frame["noise"] == noise]) for noise in style.ordered_noises(frame["noise"])]


def by_seed(summaries: pd.DataFrame, arm: str, column: str) -> pd.Series:
    """Return a column of an arm's rows, indexed by seed."""
    rows = summaries[summaries["arm"] == arm]
    return rows.set_index("seed")[column].sort_index()


def paired(summaries: pd.DataFrame, arm: str, other: str, column: str) -> pd.Series:
    """Return `arm` minus `other` for the seeds that both have."""
    return (by_seed(summaries, arm, column) - by_seed(summaries, other, column)).dropna()


def prompt_gain(first: dict[str, float], last: dict[str, float]) -> statistics.Estimate:
    """Estimate the gain between two evaluations of one run, paired over their common prompts: n counts prompts, not seeds."""
    shared = [prompt for prompt in first if prompt in last]
    return statistics.mean_estimate([last[prompt] - first[prompt] for prompt in shared])
