"""Show a study's `mechanism.json`, measurements of the methods without training, as tables and figures.

gradient_norm: norm of one step's policy gradient against that step's λ, with uniform weights and with 1/λ.
variance_share: share of the within-group reward variance that the step, the initial noise and the SDE noise explain.
alignment: cosine of one iteration's policy gradient with the exact reward gradient.
Intervals and n are over repeats (independent batches), as they are over seeds elsewhere. Numbers between -1 and 1
(correlations, shares, cosines) have theirs on Fisher's scale.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import curves, plain, style
from analysis.statistics import correlation_estimate, mean_estimate

FILE = "mechanism.json"
COLUMNS = (
    "quantity",
    "noise",
    "step",
    "lambda",
    "weighting",
    "method",
    "source",
    "value",
    "device_seconds",
    "repeat",
)
# These colours differ from those of the methods.
WEIGHTINGS = {"uniform": ("uniform weights", "#7a4b2a", "o"), "inverse_lambda": ("weights 1/λ (TGR)", "#00798c", "D")}
SOURCES = {
    "step": ("step", "#00798c", "o"),
    "initial_noise": ("initial noise", "#7a4b2a", "s"),
    "sde_noise": ("SDE noise", "#6b705c", "D"),
}
CANDIDATE_STEPS = range(10)  # the release's, of 20


def load_mechanism(paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Return every measurement of the studies at `paths`, and notes on files that could not be read."""
    rows, notes = [], []
    for path in paths:
        file = Path(path) / FILE
        if file.exists():
            try:
                found = list(json.loads(file.read_text())["measurements"])
            except (ValueError, KeyError, TypeError, RecursionError, OSError) as problem:
                notes.append(
                    plain.words(f"{file} is unreadable and was left out ({type(problem).__name__}: {problem}).")
                )
                continue
            known = [item for item in found if _is_known(item)]
            if len(known) < len(found):
                notes.append(
                    f"{len(found) - len(known)} measurements of another kind in {plain.words(file)} were left out."
                )
            rows += [item | ({"method": plain.name(item["method"])} if "method" in item else {}) for item in known]
    measurements = pd.DataFrame(rows)
    return measurements.reindex(columns=list(dict.fromkeys([*COLUMNS, *measurements.columns]))), notes


def _is_known(item: object) -> bool:
    """Return True if an entry is a measurement: names that the figures know, and numbers where numbers are expected."""
    if not isinstance(item, dict) or item.get("noise") not in style.NOISES:
        return False
    kinds = {
        "gradient_norm": ("weighting", WEIGHTINGS),
        "variance_share": ("source", SOURCES),
        "alignment": ("noise", style.NOISES),
    }
    key, names = kinds.get(str(item.get("quantity")), ("", ()))
    numbers = [item.get(name) for name in ("value", "device_seconds", "step", "lambda", "repeat")]
    needed = [item.get(name) for name in ("step", "lambda", "repeat") if item["quantity"] == "gradient_norm"]
    return (
        str(item.get(key)) in names and None not in needed and all(type(n) in (int, float, type(None)) for n in numbers)
    )


def gradient_norms(measurements: pd.DataFrame, noise: str, weighting: str) -> pd.DataFrame:
    """Return the gradient norms, with repeats as rows and steps as columns."""
    some = measurements[measurements["quantity"] == "gradient_norm"]
    some = some[(some["noise"] == noise) & (some["weighting"] == weighting)].astype({"value": float, "step": int})
    return some.pivot_table(index="repeat", columns="step", values="value").dropna(axis=1)


def lambda_of_step(measurements: pd.DataFrame, noise: str) -> pd.Series:
    some = measurements[(measurements["quantity"] == "gradient_norm") & (measurements["noise"] == noise)]
    return some.astype({"step": int, "lambda": float}).groupby("step")["lambda"].first()


def power_law(measurements: pd.DataFrame, noise: str) -> tuple[np.ndarray, np.ndarray]:
    """Return correlation and slope of log norm on log λ over the candidate steps, at uniform weights, one per repeat.

    Both are empty if no gradient norm was measured with this noise.
    """
    norms = gradient_norms(measurements, noise, "uniform")
    correlation, slope = _fits(norms[candidates(norms)], lambda_of_step(measurements, noise)).T
    return correlation, slope


def candidates(norms: pd.DataFrame) -> list[int]:
    """Return those of the measured steps that a one-step method may train."""
    return [step for step in norms.columns if step in CANDIDATE_STEPS]


def _fits(norms: pd.DataFrame, lambda_: pd.Series) -> np.ndarray:
    """Return the correlation and the slope of log norm on log λ, a row per repeat."""
    x = np.log(lambda_.loc[norms.columns].to_numpy())
    rows = np.log(norms.to_numpy())
    return np.array([[np.corrcoef(x, row)[0, 1], np.polyfit(x, row, 1)[0]] for row in rows]).reshape(-1, 2)


def gradient_table(measurements: pd.DataFrame) -> pd.DataFrame:
    """Return, by SDE noise, weighting and range of steps, correlation with λ, slope, and the norm's variation over steps."""
    some, rows = measurements[measurements["quantity"] == "gradient_norm"], []
    for noise, weighting in sorted(
        set(zip(some["noise"], some["weighting"], strict=True)), key=_linear_and_uniform_first
    ):
        norms = gradient_norms(some, noise, weighting)
        for steps in dict.fromkeys([tuple(candidates(norms)), tuple(norms.columns)]):
            part = norms[list(steps)]
            correlation, slope = _fits(part, lambda_of_step(some, noise)).T
            rows.append(
                {
                    "SDE noise": noise,
                    "Weights": WEIGHTINGS.get(weighting, (weighting,))[0],
                    "Steps": f"{min(steps)}–{max(steps)}",
                    "n": len(part),
                    "Correlation with λ (log-log)": correlation_estimate(correlation),
                    "Slope (1: proportional)": mean_estimate(slope),
                    "Coefficient of variation": mean_estimate(part.std(axis=1, ddof=0) / part.mean(axis=1)),
                }
            )
    return pd.DataFrame(rows)


def _linear_and_uniform_first(key: tuple[str, str]) -> tuple[int, int]:
    return style.NOISES.index(key[0]), list(WEIGHTINGS).index(key[1])


def gradient_against_lambda(ax: Axes, measurements: pd.DataFrame, noise: str) -> Axes:
    """Draw the gradient norm of each step against λ, relative to its mean over the candidate steps, with intervals.

    Open markers: steps that a one-step method does not train.
    """
    lambda_ = lambda_of_step(measurements, noise)
    for weighting, (label, color, marker) in WEIGHTINGS.items():
        norms = gradient_norms(measurements, noise, weighting)
        relative = norms.div(norms[candidates(norms)].mean(axis=1), axis=0)
        for step in relative.columns:
            item = mean_estimate(relative[step])
            face = color if step in CANDIDATE_STEPS else "white"
            name = f"{label}, n={len(norms)}" if step == relative.columns[0] else None
            ax.plot(lambda_[step], item.value, marker, color=color, markerfacecolor=face, label=name, zorder=3)
            ax.vlines(lambda_[step], item.low, item.high, color=color, linewidth=1.2)
    span = np.array([lambda_.min(), lambda_.max()])
    trained = lambda_[lambda_.index.isin(CANDIDATE_STEPS)].mean()
    ax.plot(span, span / trained, color="#888888", linewidth=1, linestyle=(0, (4, 3)), label="proportional to λ")
    ax.set(xscale="log", yscale="log", xlabel="λ of the step", ylabel="Gradient norm / its mean")
    style.plain_log_labels(ax.xaxis)
    style.plain_log_labels(ax.yaxis)
    return ax


def variance_shares(measurements: pd.DataFrame) -> pd.DataFrame:
    """Return the share of within-group reward variance by source, a row per SDE noise."""
    some, rows = measurements[measurements["quantity"] == "variance_share"], []
    for noise, part in curves.by_noise(some):
        values = {source: part.loc[part["source"] == source, "value"].astype(float) for source in SOURCES}
        shares = {
            f"{SOURCES[source][0]} (share)": correlation_estimate(value)
            for source, value in values.items()
            if len(value)
        }
        rows.append({"SDE noise": noise, "n": max(item.n for item in shares.values()), **shares})
    return pd.DataFrame(rows)


def variance_by_source(ax: Axes, measurements: pd.DataFrame) -> Axes:
    """Draw the shares as dots with intervals. Each is estimated separately, so they need not add up to 1."""
    labels = []
    for item in variance_shares(measurements).to_dict("records"):
        for source, (label, color, marker) in SOURCES.items():
            if f"{label} (share)" in item:
                estimate = item[f"{label} (share)"]
                style.draw_estimate(ax, len(labels), estimate, style.Look(source, label, color, marker, "-"))
                labels.append(f"{item['SDE noise']} SDE: {label}  n={estimate.n}")
    ax.axvline(0, color="#888888", linewidth=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(right=1.04)
    ax.grid(False, axis="y")
    ax.set_xlabel("Share of within-group reward variance")
    return ax


def alignment_table(measurements: pd.DataFrame) -> pd.DataFrame:
    """Return the cosine with the exact reward gradient for each method and SDE noise, also divided by its device-seconds."""
    some, rows = measurements[measurements["quantity"] == "alignment"], []
    for noise, part in curves.by_noise(some):
        for arm in style.ordered(part["method"]):
            mine = part[part["method"] == arm]
            cosine, seconds = (mine[name].to_numpy(dtype=float) for name in ("value", "device_seconds"))
            rows.append(
                {
                    "Method": style.look(arm).name,
                    "SDE noise": noise,
                    "n": len(cosine),
                    "Cosine": correlation_estimate(cosine),
                    "Device-seconds": float(np.mean(seconds)),
                    "Cosine per device-second": mean_estimate(cosine / seconds),
                }
            )
    return pd.DataFrame(rows)


def alignment(ax: Axes, table: pd.DataFrame, column: str = "Cosine") -> Axes:
    """Draw a column of `alignment_table` as dots with intervals, a row per method."""
    looks = [style.look_named(name) for name in table["Method"]]
    for row, item in enumerate(table.to_dict("records")):
        style.draw_estimate(ax, row, item[column], looks[row])
    ax.axvline(0, color="#888888", linewidth=1)
    ax.set_yticks(range(len(table)), [f"{look.short}  n={n}" for look, n in zip(looks, table["n"], strict=True)])
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel(f"{column} with the exact reward gradient" if column == "Cosine" else column)
    return ax
