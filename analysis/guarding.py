"""Show which guards hold in a study's runs, when each first did and why, and which of them ended a run.

The guards are judged anew from the evaluation records, by each run's own `stop_when`: so runs of before there were flags are
judged too. `flash_grpo.records.guards` defines them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import curves, style
from analysis.statistics import Estimate, mean_estimate
from analysis.study import Study
from flash_grpo.records import guards
from flash_grpo.records.schema import Cost, EvalRecord

NAMES = {
    "held_out_falls": "Held-out reward fell",
    "diversity_below": "Diversity lost",
    "base_distance_above": "Far from the base",
}
MEASURED = {"held_out_falls": "held_out", "diversity_below": "diversity"}  # what the usual guards read


def flagged(study: Study) -> pd.DataFrame:
    """Return, for each run and guard that ever held, the evaluation record where it first did, with `guard` and `why`."""
    thresholds = {run.run: _thresholds(run.config) for run in study.runs.itertuples()}
    found = [
        row
        for run, some in study.evaluations.groupby("run", sort=False)
        for row in _first_flags(some, thresholds.get(run, {}))
    ]
    places, names, reasons = zip(*found, strict=True) if found else ((), (), ())
    return study.evaluations.loc[list(places)].assign(guard=list(names), why=list(reasons))


def _first_flags(evaluations: pd.DataFrame, stop_when: guards.Thresholds) -> Iterator[tuple[Any, str, str]]:
    """Yield for each guard that ever held the place in the frame of the evaluation where it first did, its name, and why."""
    records = [_record(row) for row in evaluations.to_dict("records")]
    seen: set[str] = set()
    for end, place in enumerate(evaluations.index, 1):
        for name in guards.flags(records[:end], stop_when):
            if name not in seen:
                yield place, name, guards.why(name, guards.thresholds(stop_when)[name], records[:end])
        seen |= set(guards.flags(records[:end], stop_when))


def _record(row: dict[str, Any]) -> EvalRecord:
    """Return what the guards read of an evaluation; a missing number is None."""

    def known(name: str) -> float | None:
        return row[name] if np.isfinite(row[name]) else None

    prompts = row["held_out_prompts"]
    return EvalRecord(
        iteration=int(known("iteration") or 0),
        optimizer_steps=0,
        cost=Cost(),
        evaluation_seconds=0.0,
        reward_mean=row["reward_mean"],
        reward_sem=None,
        reward_parts={},
        prompt_rewards={},
        n=0,
        diversity=known("diversity"),
        base_distance=known("base_distance"),
        held_out=known("held_out"),
        held_out_prompts=prompts if isinstance(prompts, dict) else {},
    )


def _thresholds(config: Any) -> dict[str, float | None]:
    """Return a run's `stop_when`, as far as its configuration has usable numbers."""
    section = config.get("stop_when") if isinstance(config, dict) else None
    known = section if isinstance(section, dict) else {}
    return {name: known[name] for name in guards.USUAL if isinstance(known.get(name), int | float) and known[name] > 0}


def guards_table(study: Study, found: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return a row per method and SDE noise: in how many finished runs each guard held, when first, and what is left.

    found: see `flagged`. "Change from base" and "Share of base's" compare a run's last evaluation with its first.
    """
    runs = study.runs[study.runs["finished"]].merge(_ends(study.evaluations), on="run")
    rows = [
        _row(study, part[part["arm"] == arm], found, cost)
        for _, part in curves.by_noise(runs)
        for arm in style.ordered(part["arm"])
    ]
    table = pd.DataFrame(rows)
    return table[[name for name in table if not table[name].map(_is_nothing).all()]]


def _ends(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return for each run the held-out reward and the diversity of its last evaluation, and what they were at first."""
    by_run = evaluations.groupby("run", sort=False)[["held_out", "diversity"]]
    return by_run.last().join(by_run.first().add_suffix("_first")).reset_index()


def _row(study: Study, runs: pd.DataFrame, found: pd.DataFrame, cost: str) -> dict[str, Any]:
    """Return the row of one arm's runs. A column that this study cannot fill has no value."""
    mine, n = found[found["run"].isin(runs["run"])], len(runs)
    held = {name: mine.loc[mine["guard"] == guard, "run"].nunique() for guard, name in NAMES.items()}
    watched = {NAMES[guard] for guard, column in MEASURED.items() if study.evaluations[column].notna().any()}
    watched |= {NAMES[guard] for guard in found["guard"]}
    return {
        "Method": style.look(runs["arm"].iloc[0]).name,
        "SDE noise": runs["noise"].iloc[0],
        "n": n,
        **{name: f"{count} of {n}" if name in watched else np.nan for name, count in held.items()},
        f"First at ({curves.cost_unit(cost, study.on_cpu)})": mean_estimate(
            curves.cost_values(mine, cost).groupby(mine["run"]).min()
        ),
        "Ended a run": f"{runs['stopped'].sum()} of {n}" if study.runs["stopped"].any() else np.nan,
        "Held-out reward": mean_estimate(runs["held_out"]),
        "Change from base": replace(mean_estimate(runs["held_out"] - runs["held_out_first"]), signed=True),
        "Diversity": mean_estimate(runs["diversity"]),
        "Share of base's": mean_estimate(runs["diversity"] / runs["diversity_first"]),
    }


def _is_nothing(value: object) -> bool:
    number = value.value if isinstance(value, Estimate) else value
    return isinstance(number, float) and bool(np.isnan(number))


def flagged_table(study: Study, found: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return a row per run and guard that ever held: when it first did, why, and whether it ended the run."""
    reasons = study.runs.set_index("run")["reason"]
    rows = [
        {
            "Run": row.run,
            "Method": style.look(row.arm).short,
            "Guard": NAMES[row.guard],
            "First after iteration": int(row.iteration),
            curves.cost_label(cost, study.on_cpu): float(spent),
            "Why": row.why,
            "Ended the run": "yes" if str(reasons[row.run]).startswith(f"stopped by stop_when.{row.guard} ") else "",
        }
        for row, spent in zip(found.itertuples(), curves.cost_values(found, cost), strict=True)
    ]
    return pd.DataFrame(rows)


def mark_first_flags(ax: Axes, study: Study, cost: str, column: str) -> Axes:
    """Ring the evaluations of finished runs at which a guard first held, on curves of a column against cost."""
    found = study.finished(flagged(study)).drop_duplicates(["run", "iteration"])
    for index, (arm, rows) in enumerate(found.groupby("arm", sort=False)):
        ring = {"color": style.look(arm).color, "markerfacecolor": "none", "markersize": 9, "linewidth": 0}
        label = {} if index else {"label": "A guard holds for the first time in a run"}
        ax.plot(curves.cost_values(rows, cost), rows[column], "o", zorder=4, gid=arm, **ring, **label)
    return ax
