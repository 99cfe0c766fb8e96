"""Make the comparison table, the cost table and the table of runs, as data frames of `Estimate`s for `analysis.render`."""

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis import curves, paper, style
from analysis.statistics import Estimate, mean_estimate
from analysis.study import Study

AT_EQUAL_COST = "Reward at"  # the comparison table's column begins so
EACH = "Device-seconds per iteration"


def comparison_table(study: Study, summaries: pd.DataFrame, cost: str = "device_seconds") -> pd.DataFrame:
    """Return a row per method and SDE noise: means over finished seeds with 95 % intervals, or the seeds' values if n < 3."""
    budget = curves.equal_budget(study, cost)
    at_budget = f"{AT_EQUAL_COST} {budget:.3g} {curves.cost_unit(cost, study.on_cpu)}"
    rows = [_comparison_row(study, rows, arm, noise, at_budget) for noise, arm, rows in arms(summaries)]
    return pd.DataFrame(rows)


def arms(summaries: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Return SDE noise, arm and rows of each arm, in the order of the tables."""
    return [
        (noise, arm, part[part["arm"] == arm])
        for noise, part in curves.by_noise(summaries)
        for arm in style.ordered(part["arm"])
    ]


def _comparison_row(study: Study, rows: pd.DataFrame, arm: str, noise: str, at_budget: str) -> dict:
    started = int(((study.runs["arm"] == arm) & (study.runs["noise"] == noise)).sum())
    phases = curves.phase_seconds(rows)
    return {
        "Method": style.look(arm).name,
        "SDE noise": noise,
        "n": str(len(rows)) if len(rows) == started else f"{len(rows)} of {started}",
        "Evaluation reward": _mean(rows, "final"),
        "Gain over base": replace(_mean(rows, "gain"), signed=True),
        **({"Held-out reward": _mean(rows, "held_out")} if study.evaluations["held_out"].notna().any() else {}),
        at_budget: _mean(rows, "at_budget"),
        "Device-seconds": _mean(rows, "device_seconds"),
        EACH: mean_estimate(curves.seconds_per_iteration(rows)),
        **{phase: float(phases[phase].mean()) for phase in phases},
    }


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """Shorten the comparison table for a terminal: short names, the phases of an iteration in one column."""
    if table.empty:
        return table
    phases = [phase for phase in curves.PHASES if phase in table]
    split = [" + ".join(f"{seconds:.3g}" for seconds in row) for row in table[phases].itertuples(index=False)]
    return table.drop(columns=phases).assign(
        Method=[style.look_named(name).short for name in table["Method"]],
        **{"Device-seconds": [item.value for item in table["Device-seconds"]]},
        **{EACH: [item.value for item in table[EACH]], " + ".join(phases): split},
    )


def _mean(rows: pd.DataFrame, column: str) -> Estimate:
    return mean_estimate(rows.get(column, []))


def cost_table(summaries: pd.DataFrame, reference: str = "flash") -> pd.DataFrame:
    """Return device-seconds per iteration, their ratio to the reference's (paired by seed), and the paper's teaser's ratio."""
    summaries = summaries.assign(each=curves.seconds_per_iteration(summaries))
    teaser = paper.teaser_factors()
    rows = []
    for noise, arm, some in arms(summaries):
        same = summaries[summaries["noise"] == noise]
        ratio = curves.times_reference(same, arm, reference)
        rows.append(
            {
                "Method": style.look(arm).name,
                "SDE noise": noise,
                "n": len(some),
                EACH: mean_estimate(some["each"]),
                "Times Flash": mean_estimate(ratio),
                "paper's teaser, n = 1": teaser.get(arm, np.nan),
            }
        )
    return pd.DataFrame(rows)


def runs_table(study: Study, summaries: pd.DataFrame) -> pd.DataFrame:
    """Return a row for every run of the study, also failed ones. The interval of the gain is over the run's prompts."""
    evaluations = dict(list(study.evaluations.groupby("run", sort=False)))
    final = summaries.set_index("run")
    rows = []
    for run in study.runs.sort_values(["noise", "arm", "seed"]).itertuples():
        some = evaluations.get(run.run)
        rows.append(
            {
                "Run": run.run,
                "Method": style.look(run.arm).short,
                "Seed": run.seed,
                "Status": "ended early" if run.stopped else run.status,
                "Iterations": int(some["iteration"].max()) if some is not None else 0,
                "Device-seconds": float(some["cost.device_seconds"].max()) if some is not None else np.nan,
                "Evaluation reward": float(final["final"].get(run.run, np.nan)),
                "Gain over base (95 % over prompts)": _gain(some),
            }
        )
    return pd.DataFrame(rows)


def _gain(evaluations: pd.DataFrame | None) -> Estimate:
    if evaluations is None or evaluations["iteration"].iloc[0] != 0:
        return Estimate(np.nan)
    first, last = evaluations["prompt_rewards"].iloc[0], evaluations["prompt_rewards"].iloc[-1]
    return replace(curves.prompt_gain(first or {}, last or {}), signed=True)
