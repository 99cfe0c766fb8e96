"""Choose learning rates from a sweep over them: `python -m analysis.rates runs/lr [runs/lr_flow …]`.

The rule, see `sweeps/lr.yaml`: of each method and SDE the smallest rate that is not worse than the best one by more than the
standard error of their paired difference over seeds. A best rate at the end of the grid asks for the next one to be run.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.render import to_terminal
from analysis.study import Study, load_study
from flash_grpo.arguments import Arguments

MIN_SEEDS = 2  # a standard error needs two


def finals(study: Study) -> pd.DataFrame:
    """Return the final evaluation reward of each finished run: noise, method, rate, seed, reward."""
    runs = study.finished(study.runs).set_index("run")
    last = study.evaluations.sort_values("iteration").groupby("run")["reward_mean"].last()
    rate = runs["config"].map(lambda config: float(config["optim"]["optimizer"]["lr"]))
    table = runs[["noise", "method", "seed"]].assign(rate=rate, reward=last)
    return table.dropna(subset="reward").reset_index(drop=True)


def chosen(reward_SR: pd.DataFrame) -> tuple[float, str]:
    """Return the rate that the rule takes, and what is to be run before it can be trusted, '' for nothing.

    reward_SR: final rewards, a row per seed and a column per rate, in ascending order.
    """
    mean_R = reward_SR.mean()
    best = float(mean_R.idxmax())
    behind_SR = reward_SR.rsub(reward_SR[best], axis=0)
    error_R = behind_SR.std(ddof=1) / np.sqrt(behind_SR.count())
    rate = float(min(rate for rate in reward_SR if rate == best or behind_SR[rate].mean() <= error_R[rate]))
    ends = {float(reward_SR.columns[0]): "smaller", float(reward_SR.columns[-1]): "larger"}
    return rate, f"the best rate is the grid's last: run a {ends[best]} one too" if best in ends else ""


def table(study: Study) -> pd.DataFrame:
    """Return a row per SDE and method: mean final reward at each rate, the rate that the rule takes, what is missing."""
    rows = []
    for (noise, method), part in finals(study).groupby(["noise", "method"], sort=False):
        reward_SR = part.pivot_table(index="seed", columns="rate", values="reward").sort_index(axis=1)
        whole_SR = reward_SR.dropna()
        rate, missing = chosen(whole_SR) if len(whole_SR) >= MIN_SEEDS else (float("nan"), "fewer than two seeds")
        means = {f"{column:g}": f"{value:.3f}" for column, value in whole_SR.mean().items()}
        found = {"SDE noise": noise, "Method": method, "n": len(whole_SR), "Rate": f"{rate:g}", "Missing": missing}
        rows.append(found | means)
    rates = sorted({name for row in rows for name in row if name[0].isdigit()}, key=float)
    return pd.DataFrame(rows, columns=["SDE noise", "Method", "n", *rates, "Rate", "Missing"])


def main(argv: list[str] | None = None) -> None:
    parser = Arguments(prog="python -m analysis.rates", description=__doc__.split("\n")[0])
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="a study's directory or archive")
    study = load_study(*parser.parse_args(argv).studies)
    if not len(study.runs):
        parser.exit(2, f"error: {' '.join(study.notes)}\n")
    print(to_terminal(table(study)))
    for note in study.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
