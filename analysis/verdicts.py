"""Make the verdict table: each claim of the paper, this study's estimate of it, and what can be concluded at this n.

*supported*: the estimate and its 95 % interval lie on the claim's side, and Holm's p over the table is below 0.05.
*contradicted*: the same on the other side. Anything else is *not resolved at this n*; the table then gives the smallest
effect that would have been found four times in five.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis import curves, mechanism, stability, statistics, style
from analysis.ablation import EFFECTS, Effect, effect
from analysis.statistics import NOTHING, Estimate, mean_estimate
from analysis.study import Study

LAMBDA_THRESHOLD = 0.9
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper about a number whose sign decides.

    side: +1 if the claim says that the number is above 0, else -1. found: the number as this study estimates it. shown:
    the estimate that the table shows. needs: what is missing if the claim could not be tested.
    """

    text: str
    noise: str
    measure: str
    side: int
    found: Effect
    shown: Estimate
    needs: str = ""


def verdicts(study: Study, summaries: pd.DataFrame, measurements: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return a row per claim and SDE noise."""
    noises = style.ordered_noises([*summaries["noise"], *measurements["noise"].dropna()]) or [""]
    per_noise = [list(_claims(study, summaries, measurements, noise, cost)) for noise in noises]
    claims = [claim for same in zip(*per_noise, strict=True) for claim in same]
    adjusted = statistics.holm([claim.found.estimate.p for claim in claims])
    rows = [
        {
            "Claim": claim.text,
            "SDE noise": claim.noise,
            "Measure": claim.measure,
            "Estimate": claim.shown,
            "n": claim.found.estimate.n,
            "p (Holm)": p,
            "Verdict": verdict(claim, p),
        }
        for claim, p in zip(claims, adjusted, strict=True)
    ]
    return pd.DataFrame(rows)


def verdict(claim: Claim, p: float) -> str:
    """Return the verdict on one claim; the module's docstring defines the words."""
    estimate, n = claim.found.estimate, claim.found.estimate.n
    if n == 0:
        return f"not tested ({claim.needs})"
    if n < statistics.SMALLEST_N:
        return f"not resolved at n = {n} (no interval below n = {statistics.SMALLEST_N})"
    if estimate.resolved and p < ALPHA:
        return "supported" if np.sign(estimate.value) == claim.side else "contradicted"
    smallest = statistics.smallest_detectable_effect(claim.found.differences)
    hint = f" (smallest effect that could have been seen: {smallest:.2g})" if np.isfinite(smallest) else ""
    return f"not resolved at n = {n}{hint}"


def _claims(
    study: Study, summaries: pd.DataFrame, measurements: pd.DataFrame, noise: str, cost: str
) -> Iterator[Claim]:
    part = summaries[summaries["noise"] == noise]
    budget = part["budget"].iloc[0] if len(part) else np.nan
    at = f"at {budget:.3g} {curves.cost_unit(cost, study.on_cpu)}"
    contrasts = {
        "Flash ≥ full trajectory at equal cost": ({"flash": 1, "full": -1}, "Flash − full"),
        "Flash ≥ Fast1 (window of one) at equal cost": ({"flash": 1, "window": -1}, "Flash − Fast1"),
        "Iso-temporal grouping helps": (EFFECTS["ITG (main effect)"], "ITG main effect"),
        "Gradient rectification helps": (EFFECTS["TGR (main effect)"], "TGR main effect"),
    }
    for text, (weights, words) in contrasts.items():
        tested = effect(part, weights)
        measure = f"{words}, reward {at}" if np.isfinite(budget) else words
        needs = f"needs runs of {', '.join(weights)}"
        yield Claim(text=text, noise=noise, measure=measure, side=1, found=tested, shown=tested.estimate, needs=needs)
    yield _collapse(study, part, noise)
    yield _lambda_predicts(measurements, noise)


def _collapse(study: Study, part: pd.DataFrame, noise: str) -> Claim:
    gain = curves.by_seed(part, "window", "gain").to_numpy(dtype=float)
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
    """Test if the correlation over the steps, at uniform weights, is above the threshold. Repeats take the place of seeds."""
    some = measurements[(measurements["noise"] == noise) & (measurements["weighting"] == "uniform")]
    correlations = mechanism.correlations(some, noise) if (some["quantity"] == "gradient_norm").any() else np.array([])
    shown = mean_estimate(correlations) if len(correlations) else NOTHING
    above = mean_estimate(correlations - LAMBDA_THRESHOLD) if len(correlations) else NOTHING
    return Claim(
        text="λ predicts the gradient norm",
        noise=noise,
        measure=f"log-log correlation over steps 0–9, above {LAMBDA_THRESHOLD} if supported",
        side=1,
        found=Effect(above, correlations - LAMBDA_THRESHOLD, True),
        shown=shown,
        needs="needs mechanism.json: gradient_norm",
    )
