"""Tell arms apart: what is averaged over seeds is a method, with those of its settings that are unusual.

A setting counts only if runs of one method and SDE noise differ in it. The usual learning rate is the one that the run's
configuration has for its method, the tuned one (`optim.lr_of`). Of another setting it is the value that more than half of
the study's methods have runs with. So `flash` stays `flash` beside runs of `flash optim.optimizer.lr=0.0003` or
`flash training.epochs=2`. If there is no usual value, or more than one, every name has the setting.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analysis import plain
from flash_grpo.records.identity import ADDED, is_in_arm

LONGEST = 120  # characters of an arm's name
RATE = "optim.optimizer.lr"


def learning_rate(config: Any) -> float:
    """Return the learning rate of a run's configuration; NaN if it has none."""
    rate = _value(config, *RATE.split("."))
    return float(rate) if isinstance(rate, int | float) else np.nan


def is_tuned(config: Any, method: str, noise: str) -> bool:
    """Return True if the learning rate is the one that the configuration itself has for this method (and SDE noise)."""
    rate = _value(config, "optim", "lr_of")
    while isinstance(rate, dict):
        rate = rate.get(method, rate.get(noise))
    return rate is not None and rate == learning_rate(config)


def _value(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def named_arms(runs: pd.DataFrame, notes: list[str]) -> pd.Series:
    """Return each run's arm, and add a note on the settings in which runs of one method differ."""
    before = {key: str(value) for key, value in ADDED.items()}  # what the configurations of earlier versions mean
    settings = pd.DataFrame([before | flat_config(config) for config in runs["config"]], index=runs.index)
    settings = settings.fillna("None")
    arms, apart = runs["method"].copy(), {}
    for (noise, method), some in runs.groupby(["noise", "method"], sort=False):
        differing = [key for key, values in settings.loc[some.index].items() if values.nunique() > 1]
        if differing:
            apart.setdefault(", ".join(differing), {})[method] = None
            usual = {key: _usual(key, some, runs[runs["noise"] == noise], settings[key]) for key in differing}
            arms[some.index] = [_arm(method, row, usual) for _, row in settings.loc[some.index].iterrows()]
    for keys, methods in apart.items():
        notes.append(
            f"Runs of one method differ in {keys} ({', '.join(methods)}): they are kept apart, not averaged. "
            "Where a name lacks the setting, it has its usual value; for a learning rate, the method's own."
        )
    return arms


def note_rewards(runs: pd.DataFrame, notes: list[str]) -> None:
    """Add a note if runs were trained on different rewards: what they reached is not on one scale."""
    trained_on = runs["config"].map(lambda config: _value(config, "reward", "_target_")).fillna("unknown").astype(str)
    arms_of = {reward.rpartition(".")[2]: some["arm"].unique() for reward, some in runs.groupby(trained_on, sort=False)}
    if len(arms_of) > 1:
        said = "; ".join(f"{reward}: {', '.join(map(str, arms))}" for reward, arms in arms_of.items())
        notes.append(
            f"Runs were trained on different rewards ({said}): these numbers must not be compared with each other."
        )


def _arm(method: str, settings: pd.Series, usual: dict[str, str | None]) -> str:
    unusual = [f"{key}={settings[key]}" for key, value in usual.items() if settings[key] != value]
    return plain.name(" ".join([method, *unusual]), LONGEST)


def _usual(key: str, same_method: pd.DataFrame, same_noise: pd.DataFrame, values: pd.Series) -> str | None:
    """Return the value that the module's docstring calls usual for this method; None if there is none, or several."""
    tuned = values[same_method.index[same_method["tuned"]]].unique() if key == RATE else []
    if len(tuned):
        return tuned[0] if len(tuned) == 1 else None
    methods = same_noise["method"].groupby(values).nunique()
    usual = methods.index[methods > same_noise["method"].nunique() / 2]
    return usual[0] if len(usual) == 1 else None


def flat_config(config: Any, prefix: str = "") -> dict[str, str]:
    """Return by dotted key, as text, the settings of a configuration that separate arms (see `identity.is_in_arm`)."""
    flat = {}
    for key, value in config.items() if isinstance(config, dict) else ():
        if is_in_arm(f"{prefix}{key}"):
            flat |= flat_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def common_rate(summaries: pd.DataFrame, methods: Iterable[str]) -> float:
    """Return the learning rate that all the methods have runs with; of several, the one with most seeds. NaN if there is none.

    Only runs count that differ from the method's usual ones in nothing but the rate.
    """
    some = _apart_in_rate_alone(summaries)
    seeds = some.pivot_table(index="lr", columns="arm", values="seed", aggfunc="nunique").reindex(columns=list(methods))
    shared = seeds.min(axis=1, skipna=False).dropna()
    return float(shared.idxmax()) if len(shared) else np.nan


def at_rate(summaries: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Return the runs with this learning rate, tuned or not, that are otherwise the method's usual ones, as plain methods."""
    some = _apart_in_rate_alone(summaries)
    return some[some["lr"] == rate]


def _apart_in_rate_alone(summaries: pd.DataFrame) -> pd.DataFrame:
    without_rate = summaries["arm"].map(lambda arm: re.sub(rf" {re.escape(RATE)}=\S+", "", arm))
    return summaries.assign(arm=without_rate)[without_rate == summaries["method"]]
