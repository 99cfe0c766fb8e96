"""Print README's table of what the sweeps of real models cost, as Markdown: `python tools/plan_table.py`.

Each row is made of `python train.py -m sweeps=SWEEP slurm=SHAPE plan=json`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flash_grpo.planning.memory import OUTSIDE, peak  # noqa: E402 -- from this checkout
from flash_grpo.planning.plan import Plan, plan_of  # noqa: E402
from flash_grpo.planning.shown import totals, wall  # noqa: E402

SHAPES = {  # on which each sweep of real models is meant to run
    "table1_1p3b": "gpu8",
    "ablation_1p3b": "gpu8",
    "fig4": "gpu8",
    "fig5": "gpu8",
    "table1_14b": "gpu96",
    "wan22_5b": "gpu8",
    "wan22_a14b": "gpu8",
}
HEAD = (
    "sweep",
    "runs",
    "GPUs of a run",
    "iterations",
    "GPU-hours of a run: training + evaluation",
    "GPU-hours in all",
    "a run takes",
    "memory of a GPU",
    "checkpoints of a run",
)


def table() -> str:
    """Return the table, a row for each sweep."""
    rows = [HEAD, ["---"] * len(HEAD)]
    rows += [_row(name, plan_of([f"sweeps={name}", f"slurm={shape}"], multirun=True)) for name, shape in SHAPES.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, plan: Plan) -> list[str]:
    runs, ranks = plan.runs, plan.allocation.ranks
    memory = max(peak(arm.needs.memory)[1] for arm in plan.arms) + OUTSIDE
    training, evaluation = _range([run.training_hours for run in runs]), _range([run.evaluation_hours for run in runs])
    return [
        f"`{name}`",
        str(len(runs)),
        str(ranks),
        _range([run.iterations for run in runs]),
        f"{training} + {evaluation}",
        f"{totals(plan)['hours']:,.0f}",
        wall(max(run.wall_hours(ranks) for run in runs)),
        f"{memory / 1e9:.0f} GB",
        f"{max(arm.needs.checkpoints for arm in plan.arms) / 1e9:.0f} GB",
    ]


def _range(values: list[float]) -> str:
    """Return '21' or '21–68'."""
    ends = list(dict.fromkeys(f"{value:.0f}" for value in (min(values), max(values))))
    return "–".join(ends)


if __name__ == "__main__":
    print(table())
