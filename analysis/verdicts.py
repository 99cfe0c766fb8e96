"""Make the verdict table: each claim of the paper, this study's estimate of it, and what can be concluded at this n.

*supported*: the estimate and its 95 % interval lie on the claim's side, and both tests, a paired t test and a sign-flip
test, have p < 0.05 after Holm's correction over the table. *contradicted*: the same on the other side. Below n = 12 neither
test is made and the row is an *interval only*: by then sign flips have too few values of p to pass the correction.
Anything else is *not resolved at this n*; the table then gives the smallest effect that a t test finds four times in five.

n counts seeds, except in the row of λ: there it counts repeats of a measurement on the untrained model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis import curves, mechanism, render, significance, stability, statistics, style
from analysis.ablation import EFFECTS, Effect, effect, rate_sets
from analysis.statistics import Estimate, correlation_estimate, fisher_z, mean_estimate
from analysis.study import Study

LAMBDA_THRESHOLD = 0.9
ALPHA = 0.05
TESTED_N = 12
AT_EQUAL_COST = {
    "Flash ≥ full trajectory at equal cost": ({"flash": 1, "full": -1}, "Flash − full"),
    "Flash ≥ Fast1 (window of one) at equal cost": ({"flash": 1, "window": -1}, "Flash − Fast1"),
}
TWO_BY_TWO = {
    "Iso-temporal grouping helps": (EFFECTS["ITG (main effect)"], "ITG main effect"),
    "Gradient rectification helps": (EFFECTS["TGR (main effect)"], "TGR main effect"),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper about a number whose sign decides.

    side: +1 if the claim says that the number is above 0, else -1. found: the number as this study estimates it, with its
    value for each seed (or repeat), which are what is tested. shown: the estimate that the table shows. scale: words for the
    number's scale, if it is not that of `shown`. needs: what is missing if the claim could not be tested.
    """

    text: str
    noise: str
    measure: str
    side: int
    found: Effect
    shown: Estimate
    scale: str = ""
    needs: str = ""

    @property
    def tested(self) -> bool:
        """Return True if there are enough seeds, paired, for both tests."""
        return len(self.found.differences) >= TESTED_N


def verdicts(study: Study, summaries: pd.DataFrame, measurements: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return a row per claim, SDE noise and way to compare. summaries: at equal `cost`, a key of `curves.COSTS`.

    A claim that has runs on one SDE has no row for another SDE without them.
    """
    other = "pflop" if cost != "pflop" else "device_seconds"
    at = {cost: summaries, other: curves.run_summaries(study, other)}
    noises = style.ordered_noises([*summaries["noise"], *measurements["noise"].dropna()]) or [""]
    per_noise = [list(_claims(study, at, measurements, noise)) for noise in noises]
    claims = _spoken_to([claim for same in zip(*per_noise, strict=True) for claim in same if claim])
    rows = [
        {
            "Claim": claim.text,
            "SDE noise": claim.noise,
            "Measure": claim.measure,
            "Estimate": claim.shown,
            "n": claim.found.estimate.n,
            "p (t, Holm)": p_t,
            "p (sign flips, Holm)": p_flips,
            "Verdict": verdict(claim, p_t, p_flips),
        }
        for claim, p_t, p_flips in zip(claims, *corrected_p(claims), strict=True)
    ]
    return pd.DataFrame(rows)


def _spoken_to(claims: list[Claim]) -> list[Claim]:
    """Leave out a claim's rows of an SDE that has no runs for it, if another SDE has."""
    places = {(claim.text, claim.noise) for claim in claims if claim.found.estimate.n}
    texts = {text for text, _ in places}
    return [claim for claim in claims if (claim.text, claim.noise) in places or claim.text not in texts]


def corrected_p(claims: list[Claim]) -> tuple[np.ndarray, np.ndarray]:
    """Return p of the t test and of the sign-flip test, each after Holm's correction; NaN for claims that are not tested."""
    by_n: dict[int, list[int]] = {}
    for index, claim in enumerate(claims):
        if claim.tested:
            by_n.setdefault(len(claim.found.differences), []).append(index)
    p_t, p_flips = np.full((2, len(claims)), np.nan)
    for same_n in by_n.values():
        p_t[same_n] = [claims[index].found.estimate.p for index in same_n]
        p_flips[same_n] = significance.sign_flip_p(np.stack([claims[i].found.differences for i in same_n], axis=1))
    return significance.holm(p_t), significance.holm(p_flips)


def verdict(claim: Claim, p_t: float, p_flips: float) -> str:
    """Return the verdict on one claim; the module's docstring defines the words. The p-values are corrected."""
    estimate, n = claim.found.estimate, claim.found.estimate.n
    if n == 0:
        return f"not tested ({claim.needs})"
    if n < TESTED_N:
        return f"{'values' if n < statistics.SMALLEST_N else 'interval'} only, n = {n} < {TESTED_N}"
    if not claim.tested:
        return "interval only, seeds are not paired"
    if estimate.resolved and max(p_t, p_flips) < ALPHA:
        return "supported" if np.sign(estimate.value) == claim.side else "contradicted"
    smallest = significance.smallest_detectable_effect(claim.found.differences)
    return f"not resolved at n = {n} (smallest effect that could have been seen: {smallest:.2g}{claim.scale})"


def _claims(
    study: Study, at: dict[str, pd.DataFrame], measurements: pd.DataFrame, noise: str
) -> Iterator[Claim | None]:
    """Yield one SDE's claims, in the same order for every SDE; None for a row that would repeat the row before."""
    at = {cost: summaries[summaries["noise"] == noise] for cost, summaries in at.items()}
    part, *_ = at.values()
    budgets = {cost: _budget(some, cost, study.on_cpu) for cost, some in at.items()}
    for text, (weights, words) in AT_EQUAL_COST.items():
        for cost, some in at.items():
            yield _contrast(text, noise, f"{words}{budgets[cost]}", some, weights)
    [budget, *_] = budgets.values()
    for text, (weights, words) in TWO_BY_TWO.items():
        sets = rate_sets(part, weights)
        for rates, some in sets.items():
            yield _contrast(text, noise, f"{words} at {rates}{budget}", some, weights, f" at {rates}")
        yield from [None] * (2 - len(sets))
    yield _collapse(study, part, noise)
    yield _lambda_predicts(measurements, noise)


def _budget(summaries: pd.DataFrame, cost: str, on_cpu: bool) -> str:
    budget = summaries["budget"].iloc[0] if len(summaries) else np.nan
    return f", reward at {budget:.3g} {curves.cost_unit(cost, on_cpu)}" if np.isfinite(budget) else ""


def _contrast(
    text: str, noise: str, measure: str, summaries: pd.DataFrame, weights: dict[str, float], rates: str = ""
) -> Claim:
    found = effect(summaries, weights)
    needs = f"needs runs of {', '.join(weights)}{rates}"
    return Claim(text=text, noise=noise, measure=measure, side=1, found=found, shown=found.estimate, needs=needs)


def _collapse(study: Study, part: pd.DataFrame, noise: str) -> Claim:
    gain = curves.by_seed(part, "window", "gain").dropna().to_numpy(dtype=float)
    estimate = replace(mean_estimate(gain), signed=True)
    outcomes = stability.run_outcomes(study.with_noise(noise))
    window = outcomes[outcomes["arm"] == "window"]
    return Claim(
        text="Fast1 (window of one) collapses",
        noise=noise,
        measure=f"final − base reward; {window['collapsed'].sum()} of {len(window)} seeds collapsed",
        side=-1,
        found=Effect(estimate, gain, True),
        shown=estimate,
        needs="needs runs of window",
    )


def _lambda_predicts(measurements: pd.DataFrame, noise: str) -> Claim:
    """Test on Fisher's scale if the correlation over the steps, at uniform weights, is above the threshold."""
    correlation, slope = mechanism.power_law(measurements, noise)
    above = fisher_z(correlation) - fisher_z([LAMBDA_THRESHOLD])
    exponent = mean_estimate(slope)
    shown = f"; slope {exponent.text(render.digits(render.half_width(exponent)))}" if exponent.n else ""
    return Claim(
        text="λ predicts the gradient norm",
        noise=noise,
        measure=f"log-log correlation over steps 0–9, above {LAMBDA_THRESHOLD} if supported{shown}; n counts repeats",
        side=1,
        found=Effect(mean_estimate(above), above, True),
        shown=correlation_estimate(correlation),
        scale=" in Fisher's z",
        needs="needs mechanism.json: gradient_norm",
    )
