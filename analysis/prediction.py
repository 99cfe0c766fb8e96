"""Compare diagnoses with a study: `python -m analysis.prediction STUDY DIAGNOSIS.json …`, files of `flash_grpo.diagnose`.

Does the signal-to-noise that a diagnosis finds before training order the methods as their measured gains do? Spearman's rank
correlation over the methods of each SDE, and its mean over the SDEs, with an interval over methods (they are resampled within
their SDE). A gain is the final evaluation reward minus the one before training, mean over seeds. It also prints the prompts ×
siblings at which a gradient is half signal. `--markdown` writes both tables as README has them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import plain, style
from analysis.render import to_markdown, to_terminal
from analysis.statistics import RESAMPLES, Estimate, mean_estimate, tails
from analysis.study import Study, load_study
from flash_grpo.arguments import Arguments

SIZES = (4, 8, 16, 32)
FEWEST = 4  # methods, below which an interval over methods means nothing


def load_diagnoses(files: Sequence[Path], notes: list[str]) -> pd.DataFrame:
    """Return a row per file that is a diagnosis, and add a note on each that is not.

    signal, error: signal-to-noise for 1,000 forwards and its standard error; a column per number of siblings has the prompts.
    """
    rows = []
    for file in files:
        try:
            rows.append(_row(json.loads(file.read_text())))
        except OSError as error:
            notes.append(f"{file}: {error.strerror}")
        except (ValueError, KeyError, TypeError) as error:
            notes.append(f"{file}: not a diagnosis ({plain.words(repr(error), 80)}); make it by diagnose.output=json")
    return pd.DataFrame(rows, columns=["method", "noise", "signal", "error", "verdict", "batch", *SIZES])


def _row(found: dict[str, Any]) -> dict[Any, Any]:
    gradient, forwards = found["gradient"], found["cost"]["iteration_forwards"]
    sizes = {size["group_size"]: _prompts(size) for size in found["sizes"]}
    return {
        "method": plain.name(found["method"]),
        "noise": plain.name(found["noise"]),
        "signal": float(gradient["ratio_per_1000_forwards"]),
        "error": 1000 * float(gradient["ratio_error"]) / float(forwards),
        "verdict": plain.words(found["verdict"]),
        "batch": f"{int(gradient['num_prompts'])} × {int(gradient['group_size'])}",
        **{size: sizes[size] for size in SIZES},
    }


def gains(study: Study) -> pd.DataFrame:
    """Return a row per SDE and method: its gain over the base, mean over seeds. Only runs with a method's usual settings."""
    evaluations = study.finished(study.evaluations).sort_values("iteration").groupby("run")["reward_mean"]
    runs = study.finished(study.runs).set_index("run")
    runs = runs.assign(gain=evaluations.last() - evaluations.first())
    usual = runs[runs["arm"] == runs["method"]]
    rows = [
        {"noise": noise, "method": method, "gain": mean_estimate(list(some["gain"]))}
        for (noise, method), some in usual.groupby(["noise", "method"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["noise", "method", "gain"])


def compared(diagnoses: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Return the methods that both have, a row per SDE and method."""
    return measured.merge(diagnoses, on=["noise", "method"])


def rank_correlation(pairs: pd.DataFrame, seed: int = 0) -> Estimate:
    """Estimate Spearman's correlation of signal and gain within each SDE, mean over SDEs; an interval over methods."""
    parts = [(some["signal"].to_numpy(), _means(some)) for _, some in pairs.groupby("noise", sort=False)]
    n = min((len(signal) for signal, _ in parts), default=0)
    if n < 2:
        return Estimate(np.nan, n=n)
    value = float(np.mean([_spearman(signal[None], gain[None])[0] for signal, gain in parts]))
    if n < FEWEST:
        return Estimate(value, n=n, signed=True)
    draw = np.random.default_rng([seed, n])
    resampled = []
    for signal, gain in parts:
        index_RM = draw.integers(len(signal), size=(RESAMPLES, len(signal)))
        resampled.append(_spearman(signal[index_RM], gain[index_RM]))
    low, high = np.nanquantile(np.mean(resampled, axis=0), tails(n))
    return Estimate(value, float(low), float(high), n, signed=True)


def _spearman(first_RM: np.ndarray, second_RM: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each row [R]; NaN where a row holds one method only."""
    first_RM, second_RM = (stats.rankdata(value, axis=1) for value in (first_RM, second_RM))
    first_RM, second_RM = (value - value.mean(1, keepdims=True) for value in (first_RM, second_RM))
    scale_R = np.sqrt((first_RM**2).sum(1) * (second_RM**2).sum(1))
    return np.divide((first_RM * second_RM).sum(1), scale_R, out=np.full(len(scale_R), np.nan), where=scale_R > 0)


def _means(pairs: pd.DataFrame) -> np.ndarray:
    return pairs["gain"].map(lambda estimate: estimate.value).to_numpy(dtype=float)


def prediction_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per SDE and method, by gain: gain, signal for 1,000 forwards, prompts needed for each number of siblings."""
    ordered = pairs.assign(value=_means(pairs)).sort_values(["noise", "value"], ascending=[False, False])
    return pd.DataFrame(
        {
            "Method": [style.look(method).name for method in ordered["method"]],
            "SDE noise": ordered["noise"].to_list(),
            "Gain": ordered["gain"].to_list(),
            "Signal / noise per 1,000 forwards": [
                f"{signal:.2g} ± {2 * error:.1g}" for signal, error in zip(ordered["signal"], ordered["error"], strict=True)
            ],
            "Batch": ordered["batch"].to_list(),
            **{f"Prompts × {size}": ordered[size].to_list() for size in SIZES},
        }
    )  # fmt: skip


def _prompts(size: dict[str, Any]) -> str:
    """Return the prompts with two digits; "> 300" where a lower bound is all that was found, "–" without a gradient."""
    if size["num_prompts"] is None:
        return "–"
    rounded = float(f"{size['num_prompts']:.2g}")
    return f"{'> ' if size['at_least'] else ''}{rounded:,.0f}"


def summary(pairs: pd.DataFrame) -> Iterator[str]:
    """Yield the rank correlation of each SDE and of all, and what it is worth."""
    for noise, some in pairs.groupby("noise", sort=False):
        yield f"rank correlation, {noise} SDE: {rank_correlation(some).text()} over {len(some)} methods"
    both = rank_correlation(pairs)
    yield f"rank correlation within SDEs: {both.text()} over {len(pairs)} methods"
    orders = (
        "orders the methods as their gains do"
        if both.low > 0
        else "is not shown to order the methods as their gains do"
    )
    yield f"The signal-to-noise ratio for its cost {orders} (lower bound {'above' if both.low > 0 else 'not above'} 0)."


def main(argv: list[str] | None = None) -> None:
    parser = Arguments(prog="python -m analysis.prediction", description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study's directory or archive")
    parser.add_argument(
        "diagnoses", nargs="+", type=Path, metavar="DIAGNOSIS", help="what diagnose.output=json printed"
    )
    parser.add_argument("--markdown", action="store_true", help="write the table as Markdown")
    given = parser.parse_args(argv)
    notes: list[str] = []
    pairs = compared(load_diagnoses(given.diagnoses, notes), gains(load_study(given.study)))
    if pairs.empty:
        parser.exit(2, f"error: {'; '.join(notes) or 'no method has both a diagnosis and finished runs'}\n")
    print((to_markdown if given.markdown else to_terminal)(prediction_table(pairs)))
    for line in (*summary(pairs), *(f"note: {note}" for note in notes)):
        print(line)


if __name__ == "__main__":
    main()
