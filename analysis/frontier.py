"""Tell how much sooner a method reaches the reward that Flash-GRPO ends with, and how diverse its videos are there."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis import curves, style, tables
from analysis.statistics import BOOTSTRAP_N, SMALLEST_N, Estimate, mean_estimate, resampling_weights, tails
from analysis.study import Study

REFERENCE = "flash"
POINTS = 400  # of the grid of costs on which the mean curve is followed


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Where the reference's runs end: costs and rewards, one for each seed [S]."""

    cost_S: np.ndarray
    reward_S: np.ndarray


def frontier_table(study: Study, summaries: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return when each method's mean curve reaches Flash's mean final reward, in `cost` and in PFLOP: a row per method and SDE.

    Empty without Flash. A method whose mean curve stays below has no factor.
    """
    rows = []
    for noise, arm, some in tables.arms(summaries):
        part = study.with_noise(noise)
        if arm == REFERENCE or not _curves(part, REFERENCE, cost) or not _curves(part, arm, cost):
            continue
        unit = curves.cost_unit(cost, study.on_cpu)
        reached = reached_after(part, arm, cost)
        rows.append(
            {
                "Method": style.look(arm).name,
                "SDE noise": noise,
                "n": len(some),
                "Flash's final reward": mean_estimate(_ends(part, REFERENCE, cost).reward_S),
                f"Reached after ({unit})": reached,
                f"Times sooner ({unit})": times_sooner(part, arm, cost),
                "Times sooner (PFLOP)": times_sooner(part, arm, "pflop"),
                "Diversity there": _diversity_at(part, arm, cost, reached),
                "Flash's diversity": _final(part, REFERENCE, "diversity"),
            }
        )
    return pd.DataFrame(rows)


def reached_after(study: Study, arm: str, cost: str) -> float:
    """Return the cost at which the mean curve of an arm reaches the mean final reward of Flash; NaN if it does not."""
    grid_G, value_SG = curves.on_common_grid(_curves(study, arm, cost), POINTS)
    target = _ends(study, REFERENCE, cost).reward_S.mean()
    return float(_crossing(grid_G, value_SG.mean(0)[None], np.array([target]))[0])


def times_sooner(study: Study, arm: str, cost: str) -> Estimate:
    """Estimate Flash's mean cost over the cost at which the arm's mean curve reaches Flash's mean final reward.

    The interval is a bootstrap over the seeds of both; a resample that does not reach the reward counts as 0 times sooner.
    """
    flash, arm_curves = _ends(study, REFERENCE, cost), _curves(study, arm, cost)
    grid_G, value_SG = curves.on_common_grid(arm_curves, POINTS)
    n = min(len(flash.cost_S), len(arm_curves))
    value = flash.cost_S.mean() / reached_after(study, arm, cost)
    if not np.isfinite(value) or n < SMALLEST_N:
        return Estimate(float(value), n=n)
    of_flash, of_arm = resampling_weights(len(flash.cost_S), 0), resampling_weights(len(arm_curves), 1)
    crossing_R = _crossing(grid_G, of_arm @ value_SG, of_flash @ flash.reward_S)
    times_R = np.nan_to_num(of_flash @ flash.cost_S / crossing_R, nan=0.0)
    low, high = np.quantile(times_R, tails(max(n, BOOTSTRAP_N)))
    return Estimate(float(value), float(low), float(high), n)


def _crossing(grid_G: np.ndarray, curve_RG: np.ndarray, target_R: np.ndarray) -> np.ndarray:
    """Return the cost at which each curve first reaches its target, linear between grid points; NaN where it does not."""
    above_RG = curve_RG >= target_R[:, None]
    first_R = above_RG.argmax(1)
    before_R = np.maximum(first_R - 1, 0)
    rows = np.arange(len(curve_RG))
    low_R, high_R = curve_RG[rows, before_R], curve_RG[rows, first_R]
    share_R = np.divide(target_R - low_R, high_R - low_R, out=np.ones_like(low_R), where=high_R > low_R)
    cost_R = grid_G[before_R] + share_R * (grid_G[first_R] - grid_G[before_R])
    return np.where(above_RG.any(1), cost_R, np.nan)


def _curves(study: Study, arm: str, cost: str, column: str = "reward_mean") -> list[curves.Curve]:
    evaluations = study.finished(study.evaluations)
    return curves.seed_curves(evaluations[evaluations["arm"] == arm], cost, column)


def _ends(study: Study, arm: str, cost: str) -> Ends:
    found = _curves(study, arm, cost)
    return Ends(
        cost_S=np.array([curve.cost[-1] for curve in found]), reward_S=np.array([curve.value[-1] for curve in found])
    )


def _final(study: Study, arm: str, column: str) -> Estimate:
    return mean_estimate([curve.value[-1] for curve in _curves(study, arm, "iterations", column)])


def _diversity_at(study: Study, arm: str, cost: str, place: float) -> Estimate:
    """Estimate the mean diversity of the arm's videos where its mean curve reaches the reward."""
    if not np.isfinite(place):
        return replace(Estimate(np.nan), n=0)
    return mean_estimate(
        [np.interp(place, curve.cost, curve.value) for curve in _curves(study, arm, cost, "diversity")]
    )
