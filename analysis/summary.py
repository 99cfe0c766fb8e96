"""Sum the verdicts up: one sentence for the page's first line, and a table with a row per claim. Both follow from the verdict
table and nothing else, so they are true of every study.
"""

from dataclasses import replace

import pandas as pd

from analysis import curves, render, style
from analysis.statistics import Estimate
from analysis.study import Study
from analysis.tables import AT_EQUAL_COST

# the verdict table's words -> how the sentence says that a claim has this verdict in every comparison
WORDS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "not resolved": "not resolved",
    "interval only": "not tested, with too few seeds",
    "values only": "not tested, with too few seeds",
    "not tested": "not tested, for want of runs or measurements",
}
DIFFERS = "different from one comparison to the next"


def word(verdict: str) -> str:
    """Return the words of WORDS that a verdict begins with."""
    return next(words for words in WORDS if verdict.startswith(words))


def tested(verdicts: pd.DataFrame) -> bool:
    """Return True if at least one row of the verdict table has an estimate."""
    return any(word(verdict) != "not tested" for verdict in verdicts["Verdict"])


def conclusion(verdicts: pd.DataFrame) -> str:
    """Return the sentence that says how many of the paper's claims have which verdict, and which claims they are."""
    by_words: dict[str, list[str]] = {}
    for claim, rows in verdicts.groupby("Claim", sort=False):
        words = [WORDS[word(verdict)] for verdict in rows["Verdict"]]
        alike = len(set(words)) == 1
        by_words.setdefault(words[0] if alike else DIFFERS, []).append(claim if alike else f"{claim}: {_apart(rows)}")
    order = [*dict.fromkeys(WORDS.values()), DIFFERS]
    parts = [_part(words, by_words[words]) for words in order if words in by_words]
    return f"Of the paper's {verdicts['Claim'].nunique()} claims, {_listed(parts)}."


def _part(words: str, claims: list[str]) -> str:
    return f"{len(claims)} {'is' if len(claims) == 1 else 'are'} {words} ({'; '.join(claims)})"


def _apart(rows: pd.DataFrame) -> str:
    """Return a claim's verdicts by SDE noise, `not resolved (linear), supported (flow)`, with counts where they are mixed."""
    return ", ".join(
        f"{_counted(some['Verdict'].map(word))}{f' ({noise})' * bool(noise)}"
        for noise, some in rows.groupby("SDE noise", sort=False)
    )


def _counted(words: pd.Series) -> str:
    counts = words.value_counts(sort=False)
    return counts.index[0] if len(counts) == 1 else " and ".join(f"{of} {count}×" for of, count in counts.items())


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def summary_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return a row per claim with a column per SDE noise: verdict and estimate of each comparison."""
    noises = style.ordered_noises(verdicts["SDE noise"])
    rows = [
        {"Claim": claim} | {_column(noise): _cell(some[some["SDE noise"] == noise]) for noise in noises}
        for claim, some in verdicts.groupby("Claim", sort=False)
    ]
    return pd.DataFrame(rows)


def _column(noise: str) -> str:
    name = style.noise_name(noise) or "verdict"
    return name[0].upper() + name[1:]


def _cell(rows: pd.DataFrame) -> str:
    """Return `supported: +0.18 [+0.12, +0.24] and +0.17 […]`, or each comparison with its own word if they differ."""
    words = [word(verdict) for verdict in rows["Verdict"]]
    numbers = [_number(estimate) for estimate in rows["Estimate"]]
    if len(set(words)) == 1:
        known = " and ".join(filter(None, numbers))
        return f"{words[0]}: {known}" if known else words[0]
    return "; ".join(f"{of}: {number}" if number else of for of, number in zip(words, numbers, strict=True))


def _number(estimate: Estimate) -> str:
    """Return the estimate with spaces that do not break; '' if there is none."""
    text = estimate.text(render.digits(render.half_width(estimate)))
    return text.replace("-", render.MINUS).replace(" ", "\N{NO-BREAK SPACE}") if estimate.n else ""


def highest(comparison: pd.DataFrame) -> str:
    """Return the sentence that names each SDE's method with the highest mean reward at equal cost; '' if there are not two.

    comparison: `tables.comparison_table`.
    """
    column = next(name for name in comparison if name.startswith(AT_EQUAL_COST))
    best = []
    for noise, rows in comparison.groupby("SDE noise", sort=False):
        known = [row for _, row in rows.iterrows() if row[column].n]
        if len(known) > 1:
            top = max(known, key=lambda row: row[column].value)
            best.append(f"{top['Method']}, {_number(top[column])}{f' ({style.noise_name(noise)})' * bool(noise)}")
    return f"Highest mean {column[0].lower()}{column[1:]}: {_listed(best)}." if best else ""


def gains(study: Study) -> str:
    """Return the sentence for a study without methods to compare: how each run's reward changed, of the first three runs."""
    known = [words for _, run in study.evaluations.groupby("run", sort=False) if (words := _change(run))]
    more = f"; and {len(known) - 3} more runs" * (len(known) > 3)
    return f"Evaluation reward, base and last [95 % over prompts]: {'; '.join(known[:3])}{more}." if known else ""


def _change(run: pd.DataFrame) -> str:
    first, last = run.iloc[0], run.iloc[-1]
    if first["iteration"] != 0 or last["iteration"] == 0:
        return ""
    gain = curves.prompt_gain(first["prompt_rewards"] or {}, last["prompt_rewards"] or {})
    by = f" ({_number(replace(gain, signed=True))}, {gain.n} prompts)" * bool(gain.n)
    name = f"{style.look(first['arm']).name}, seed {first['seed']}"
    return f"{name}: {first['reward_mean']:.3f} → {last['reward_mean']:.3f}{by}"
