"""Compute the ablation: {ITG} × {TGR} with main effects, interaction, shared noise, differences from Flash, cost to a target.

Rewards are compared at equal budget. Methods are paired by seed, and by prompt if both have evaluated it. The 2×2 is
made twice: with each method at its tuned learning rate, and with all four at one common rate.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import arms, curves, significance, statistics, style
from analysis.statistics import NOTHING, Estimate, contrast_estimate, mean_estimate
from analysis.study import Study

REFERENCE = "flash"
SWITCHES = {  # arm -> (iso-temporal grouping, gradient rectification)
    "naive_one_step": (False, False),
    "no_rectification": (True, False),
    "no_iso_temporal": (False, True),
    "flash": (True, True),
}
EFFECTS = {
    "ITG (main effect)": {"flash": 0.5, "no_iso_temporal": -0.5, "no_rectification": 0.5, "naive_one_step": -0.5},
    "TGR (main effect)": {"flash": 0.5, "no_rectification": -0.5, "no_iso_temporal": 0.5, "naive_one_step": -0.5},
    "ITG × TGR (interaction)": {"flash": 1, "no_iso_temporal": -1, "no_rectification": -1, "naive_one_step": 1},
    "Shared initial noise": {"shared_noise": 1, "flash": -1},
}
OWN_RATES = "each method's rate"


@dataclass(frozen=True)
class Effect:
    """An estimated contrast of arms. differences: the contrast of each seed if it is paired by seed, else empty."""

    estimate: Estimate
    differences: np.ndarray
    paired: bool


def effect(summaries: pd.DataFrame, weights: dict[str, float], column: str = "at_budget") -> Effect:
    """Estimate a weighted sum of arms, paired over the seeds that all arms have.

    If fewer than three seeds are shared, estimate the weighted sum of the arms' means, each over the arm's own seeds.
    """
    seeds = {arm: curves.by_seed(summaries, arm, column).dropna() for arm in weights}
    shared = pd.concat(seeds, axis=1, join="inner")
    if len(shared) >= statistics.SMALLEST_N or 0 < len(shared) == max(map(len, seeds.values())):
        differences = (shared * pd.Series(weights)).sum(axis=1).to_numpy()
        return Effect(replace(mean_estimate(differences), signed=True), differences, True)
    estimate = contrast_estimate(list(seeds.values()), list(weights.values()))
    return Effect(replace(estimate, signed=True), np.array([]), False)


def rate_sets(summaries: pd.DataFrame, methods: Collection[str]) -> dict[str, pd.DataFrame]:
    """Return the methods' runs at their own learning rates and at a common one, by the words for these rates.

    A run whose own rate is the common one is in both. If that holds for every run, there is only one set. A study without
    runs at a common rate has an empty second set. Pass runs of one SDE noise.
    """
    own, rate = summaries[summaries["arm"].isin(methods)], arms.common_rate(summaries, methods)
    words = "tuned rates" if len(own) and own["tuned"].all() else OWN_RATES
    if not np.isfinite(rate):
        return {words: own, "a common rate": summaries.iloc[:0]}
    common = f"common rate {np.format_float_scientific(rate, trim='-', exp_digits=1)}"
    if (own["lr"] == rate).all() and own["arm"].nunique() == len(methods):
        return {f"tuned and {common}" if own["tuned"].all() else common: own}
    return {words: own, common: arms.at_rate(summaries, rate)}


def effects_table(summaries: pd.DataFrame) -> pd.DataFrame:
    """Return the main effects, interaction and effect of shared noise, for each SDE noise and for both together.

    Holm's correction is over the whole table.
    """
    rows = [row for name, weights in EFFECTS.items() for row in _effect_rows(summaries, name, weights)]
    table = pd.DataFrame(rows)
    if len(table):
        table["p (Holm)"] = significance.holm([item.p for item in table["Effect on reward"]])
    return table


def _effect_rows(summaries: pd.DataFrame, name: str, weights: dict[str, float]) -> list[dict]:
    """Return an effect's rows: for each SDE noise and set of rates, and for all SDEs together at the methods' own rates."""
    rows, own = [], []
    for noise, part in curves.by_noise(summaries):
        items = [(words, effect(some, weights)) for words, some in rate_sets(part, weights).items()]
        rows += [_effect_row(name, noise, words, item) for words, item in items if item.estimate.n]
        own += [item for _, item in items[:1] if item.estimate.n]
    if len(own) > 1 and all(item.paired for item in own):
        both = contrast_estimate([item.differences for item in own], [1 / len(own)] * len(own))
        rows.append(_effect_row(name, "both", OWN_RATES, Effect(replace(both, signed=True), np.array([]), True)))
    return rows


def _effect_row(name: str, noise: str, rates: str, item: Effect) -> dict:
    return {
        "Effect": name,
        "SDE noise": noise,
        "Learning rates": rates,
        "n": item.estimate.n,
        "Seeds": "paired" if item.paired else "unpaired",
        "Effect on reward": item.estimate,
        "Smallest detectable": significance.smallest_detectable_effect(item.differences),
    }


def differences_from_flash(study: Study, summaries: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return every arm's reward minus Flash's at equal budget: paired by seed, and by prompt over the seeds that both ran."""
    rows = []
    for noise, part in curves.by_noise(summaries):
        some = study.with_noise(noise)
        budget = part["budget"].iloc[0]
        flash = curves.prompt_rewards_at(some, REFERENCE, cost, budget)
        for arm in style.ordered(set(part["arm"]) - {REFERENCE}):
            over_seeds = effect(part, {arm: 1, REFERENCE: -1})
            prompts = prompt_differences(curves.prompt_rewards_at(some, arm, cost, budget), flash)
            rows.append(_difference_row(arm, noise, over_seeds, prompts))
    table = pd.DataFrame(rows)
    if len(table):
        table["p (Holm)"] = significance.holm([item.p for item in table["Difference from Flash"]])
    return table


def prompt_differences(rewards: pd.DataFrame, reference: pd.DataFrame) -> np.ndarray:
    """Return for each prompt the mean difference over the shared seeds. Both frames have seeds as rows, prompts as columns."""
    seeds, prompts = rewards.index.intersection(reference.index), rewards.columns.intersection(reference.columns)
    return (rewards.loc[seeds, prompts] - reference.loc[seeds, prompts]).mean().to_numpy()


def _difference_row(arm: str, noise: str, over_seeds: Effect, prompts: np.ndarray) -> dict:
    over_prompts = replace(mean_estimate(prompts), signed=True) if len(prompts) >= statistics.SMALLEST_N else NOTHING
    return {
        "Method": style.look(arm).name,
        "SDE noise": noise,
        "n": over_seeds.estimate.n,
        "Difference from Flash": over_seeds.estimate,
        "Smallest detectable": significance.smallest_detectable_effect(over_seeds.differences),
        "over prompts, same seeds": over_prompts,
        "prompts": over_prompts.n,
    }


def target_reward(summaries: pd.DataFrame) -> float:
    """Return the default target: the base reward plus half of the best method's mean gain at equal budget."""
    base = summaries["base"].mean()
    best = summaries.groupby(["noise", "arm"])["at_budget"].mean().max()
    return float(base + (best - base) / 2)


def cost_to_target(study: Study, arm: str, target: float, horizon: float, cost: str) -> tuple[Estimate, int, int]:
    """Return the restricted mean cost to the target up to the horizon, the number of runs that reached it, and of all runs.

    No run with records is dropped: a run that never reached the target, even if it failed or still runs, is right-censored
    at its last evaluation.
    """
    some = curves.seed_curves(study.evaluations[study.evaluations["arm"] == arm], cost)
    if not some or not np.isfinite([target, horizon]).all():
        return NOTHING, 0, len(some)
    times, reached = map(
        np.array, zip(*(statistics.time_to_target(c.cost, c.value, target) for c in some), strict=True)
    )
    within = reached & (times <= horizon)
    return statistics.restricted_mean_estimate(times, reached, horizon), int(within.sum()), len(some)


def ablation(study: Study, summaries: pd.DataFrame, cost: str, target: float | None = None) -> pd.DataFrame:
    """Return the ablation table: switches, reward at equal budget (two means), area under the curve, cost to a target."""
    target = target_reward(summaries) if target is None and len(summaries) else target
    unit = curves.cost_unit(cost, study.on_cpu)
    rows = []
    for noise, part in curves.by_noise(summaries):
        some = study.with_noise(noise)
        horizon = part["budget"].iloc[0]
        for arm in style.ordered(part["arm"]):
            spent, reached, runs = cost_to_target(some, arm, target, horizon, cost)
            rows.append(
                {
                    "Method": style.look(arm).short,
                    "SDE noise": noise,
                    **_switch_words(arm),
                    "n": int((part["arm"] == arm).sum()),
                    f"Reward at {horizon:.3g} {unit}": mean_estimate(curves.by_seed(part, arm, "at_budget")),
                    "Interquartile mean": statistics.bootstrap_estimate(
                        curves.by_seed(part, arm, "at_budget"), statistics.interquartile_mean
                    ),
                    "Area under the curve": mean_estimate(curves.by_seed(part, arm, "area")),
                    f"{unit} to reward {target:.3g}": spent if reached else f"> {horizon:.3g}",
                    "reached": f"{reached} of {runs}",
                }
            )
    return pd.DataFrame(rows)


def _switch_words(arm: str) -> dict[str, str]:
    method = arm.partition(" ")[0]
    switches = SWITCHES.get(method, (None, None)) if method != "shared_noise" else (True, True)
    return {name: {True: "yes", False: "no", None: "–"}[on] for name, on in zip(("ITG", "TGR"), switches, strict=True)}


def difference_forest(ax: Axes, table: pd.DataFrame) -> Axes:
    """Draw the differences from Flash with their intervals, a row per method and SDE noise."""
    labels = []
    for row, item in enumerate(table.itertuples(index=False)):
        name, _, n, estimate = item[:4]
        look = style.look_named(name)
        style.draw_estimate(ax, row, estimate, look)
        labels.append(f"{look.short}  n={n}")
    ax.axvline(0, color=style.look(REFERENCE).color, linewidth=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel("Reward minus Flash-GRPO's, at equal budget, paired by seed")
    return ax
