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


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Where an arm's mean curve reaches the mean final reward of Flash.

    of: the arm's runs. flash: Flash's runs on the same SDE, or on the linear one if there are none. cost: NaN if it does not.
    diversity: of the arm's videos there.
    """

    arm: str
    noise: str
    of: Study
    flash: Study
    cost: float
    diversity: Estimate

    def beaten_by(self, other: "Reached") -> bool:
        """Return True if the other one is there sooner with videos at least as diverse; by means, whatever their intervals."""
        return other.cost < self.cost and other.diversity.value >= self.diversity.value


def reached_by(study: Study, summaries: pd.DataFrame, cost: str) -> list[Reached]:
    """Return where each arm reaches Flash's reward, Flash itself at its end; empty without Flash."""
    found = []
    for noise, arm, _ in tables.arms(summaries):
        part, flash = study.with_noise(noise), _with_flash(study, noise, cost)
        if flash is None or not _curves(part, arm, cost):
            continue
        is_flash = arm == REFERENCE
        place = float(_ends(part, arm, cost).cost_S.mean()) if is_flash else reached_after(part, arm, cost, flash)
        diversity = _final(part, arm, "diversity") if is_flash else _diversity_at(part, arm, cost, place)
        found.append(Reached(arm=arm, noise=noise, of=part, flash=flash, cost=place, diversity=diversity))
    return found


def on_front(one: Reached, found: list[Reached]) -> bool:
    """Return True if it reaches the reward and no arm of the same SDE, or of the one that it is compared with, beats it."""
    noises = {one.noise, one.flash.runs["noise"].iloc[0]}
    return bool(np.isfinite(one.cost)) and not any(one.beaten_by(other) for other in found if other.noise in noises)


def frontier_table(study: Study, summaries: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return when each method's mean curve reaches Flash's mean final reward, in `cost` and in PFLOP: a row per method and SDE.

    Empty without Flash. A method whose mean curve stays below has no factor.
    """
    found = reached_by(study, summaries, cost)
    unit = curves.cost_unit(cost, study.on_cpu)
    return pd.DataFrame(
        {
            "Method": style.look(one.arm).name,
            "SDE noise": one.noise,
            "n": len(_curves(one.of, one.arm, cost)),
            "Flash's final reward": mean_estimate(_ends(one.flash, REFERENCE, cost).reward_S),
            f"Reached after ({unit})": one.cost,
            f"Times sooner ({unit})": times_sooner(one.of, one.arm, cost, one.flash),
            "Times sooner (PFLOP)": times_sooner(one.of, one.arm, "pflop", one.flash),
            "Diversity there": one.diversity,
            "Flash's diversity": _final(one.flash, REFERENCE, "diversity"),
            "On the front": "yes" if on_front(one, found) else "–",
        }
        for one in found
        if one.arm != REFERENCE
    )


def reached_after(study: Study, arm: str, cost: str, flash: Study | None = None) -> float:
    """Return the cost at which the mean curve of an arm reaches the mean final reward of Flash; NaN if it does not.

    flash: where Flash's runs are, if not in `study`.
    """
    grid_G, value_SG = curves.on_common_grid(_curves(study, arm, cost), POINTS)
    target = _ends(flash or study, REFERENCE, cost).reward_S.mean()
    return float(_crossing(grid_G, value_SG.mean(0)[None], np.array([target]))[0])


def times_sooner(study: Study, arm: str, cost: str, flash: Study | None = None) -> Estimate:
    """Estimate Flash's mean cost over the cost at which the arm's mean curve reaches Flash's mean final reward.

    The interval is a bootstrap over the seeds of both; a resample that does not reach the reward counts as 0 times sooner, one
    in which Flash ends below the base, whose reward costs nothing, as infinitely often.
    """
    ends, arm_curves = _ends(flash or study, REFERENCE, cost), _curves(study, arm, cost)
    grid_G, value_SG = curves.on_common_grid(arm_curves, POINTS)
    n = min(len(ends.cost_S), len(arm_curves))
    value = ends.cost_S.mean() / reached_after(study, arm, cost, flash)
    if not np.isfinite(value) or n < SMALLEST_N:
        return Estimate(float(value), n=n)
    of_flash, of_arm = resampling_weights(len(ends.cost_S), 0), resampling_weights(len(arm_curves), 1)
    crossing_R = _crossing(grid_G, of_arm @ value_SG, of_flash @ ends.reward_S)
    with np.errstate(divide="ignore", invalid="ignore"):
        times_R = np.nan_to_num(of_flash @ ends.cost_S / crossing_R, nan=0.0, posinf=np.inf)
        low, high = np.nan_to_num(np.quantile(times_R, tails(max(n, BOOTSTRAP_N))), nan=np.inf, posinf=np.inf)
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


def _with_flash(study: Study, noise: str, cost: str) -> Study | None:
    parts = (study.with_noise(name) for name in (noise, "linear"))
    return next((part for part in parts if _curves(part, REFERENCE, cost)), None)


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
