"""Tell what was run: when, on what, from which code, with which settings and prompts."""

from collections.abc import Iterator

import pandas as pd

from analysis import plain, style
from analysis.arms import flat_config
from analysis.shown import Material, Shown
from analysis.study import Study
from flash_grpo.records.identity import is_identity

MOST_PROMPTS = 200  # in the table


def facts(study: Study) -> dict[str, str]:
    """Return what the page says about the study, in words; a fact that is not known is left out."""
    runs = study.runs
    commits = {plain.words(git.get("commit", ""))[:10] + ("+" if git.get("dirty") else "") for git in runs["git"]}
    days = sorted(set(runs["day"]) - {""})
    counts = runs["status"].value_counts()
    known = {
        "Runs": ", ".join(f"{number} {status}" for status, number in counts.items()) or "none",
        "Methods": ", ".join(style.look(arm).short for arm in style.ordered(runs["arm"])) or "none",
        "Seeds": ranges(sorted(runs["seed"].unique())),
        "Models": _listed(runs["model"]),
        "Processors": "; ".join(
            f"{count} × {processor}" for processor, count in runs.groupby("processor")["world_size"].max().items()
        ),
        "Run on": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "",
        "Code (+: with changes)": ", ".join(sorted(commits - {"", "+"})),
        "Prompts (sha256)": ", ".join(sorted({prompts[:12] for prompts in runs["prompts"]} - {""})),
        "Versions": _listed(runs["versions"]),
    }
    return {key: value for key, value in known.items() if value}


def _listed(values: pd.Series) -> str:
    return "; ".join(sorted(set(values) - {""}))


def ranges(seeds: list[int]) -> str:
    """Format seeds as ranges.

    >>> ranges([0, 1, 2, 20])
    '0–2, 20'
    """
    starts = [seed for seed in seeds if seed - 1 not in seeds]
    ends = [seed for seed in seeds if seed + 1 not in seeds]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def shown(given: Material) -> Iterator[Shown]:
    """Yield the table of settings and the list of evaluation prompts."""
    if len(settings := settings_table(given.study)):
        caption = (
            "Every setting that defines a run, but its seed. Where runs differ, the most frequent value stands first."
        )
        yield Shown(name="settings", title="Settings", caption=caption, table=settings, folded=True)
    if len(prompts := prompts_table(given.study)):
        caption = "Base: mean reward before training, over all runs."
        more = f" The first {MOST_PROMPTS} of {len(prompts)}." if len(prompts) > MOST_PROMPTS else ""
        table = prompts.head(MOST_PROMPTS)
        yield Shown(name="prompts", title="Evaluation prompts", caption=caption + more, table=table, folded=True)


def settings_table(study: Study) -> pd.DataFrame:
    """Return a row per setting that defines a run, with its value or values."""
    flat = pd.DataFrame([flat_config(config) for config in study.runs["config"]], index=study.runs.index)
    keys = sorted(key for key in flat if is_identity(key) and not key.endswith("._partial_"))
    rows = [{"Setting": plain.words(key), "Value": _values(flat[key].fillna("not set"), study.runs)} for key in keys]
    return pd.DataFrame(rows, columns=["Setting", "Value"])


def _values(values: pd.Series, runs: pd.DataFrame) -> str:
    """Return `1e-4`, or `1e-4; 3e-4 (flow: Full / ITG only)` where runs differ, the most frequent value first."""
    usual, *others = values.value_counts().index
    apart = [f"{plain.words(value)} ({_who(runs[values == value], runs)})" for value in others]
    return "; ".join([plain.words(usual), *apart])


def _who(some: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Name the runs by their methods, those of each SDE apart unless they are the same ones."""
    by_noise = {noise: _methods(part, runs[runs["noise"] == noise]) for noise, part in some.groupby("noise")}
    everywhere = len(by_noise) == runs["noise"].nunique() and len(set(by_noise.values())) == 1
    if everywhere and (names := next(iter(by_noise.values()))):
        return names
    parts = [": ".join(filter(None, (noise, names))) for noise, names in by_noise.items()]
    return ", ".join(filter(None, parts)) or "some runs"


def _methods(some: pd.DataFrame, of: pd.DataFrame) -> str:
    """Return the short names of the arms; '' if they are all that there are."""
    arms = style.ordered(some["arm"])
    return "" if set(arms) == set(of["arm"]) else " / ".join(style.look(arm).short for arm in arms)


def prompts_table(study: Study) -> pd.DataFrame:
    """Return a row per evaluation prompt, in the order of evaluation, with its mean reward before training."""
    first = study.evaluations.loc[study.evaluations["iteration"] == 0, "prompt_rewards"]
    rewards = pd.DataFrame([value for value in first if isinstance(value, dict) and value], dtype=float)
    rows = [{"Prompt": plain.words(prompt), "Base": float(rewards[prompt].mean())} for prompt in rewards]
    return pd.DataFrame(rows, columns=["Prompt", "Base"])
