"""Compare the paper's numbers with a study's: Table 1 and the layout of Figures 4 and 5. Caveats: paper/README.md."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import figures, style
from analysis.statistics import Estimate, mean_estimate
from analysis.study import Study
from flash_grpo.records.vbench import read_vbench

PAPER = Path(__file__).parent / "paper"
VBENCH_FILE, BASE = "vbench.json", "evaluation/base"
BASE_ROW = "Wan2.1-T2V-1.3B (official)"
ARCHITECTURE = {"num_attention_heads": 12, "num_layers": 30}  # of Wan2.1 1.3B, whatever its folder is called
VBENCH = ("aesthetic_quality", "imaging_quality", "subject_consistency", "object_class")
METHOD_OF = {"Flow-GRPO": "full", "Flow-GRPO-Fast1": "window", "Flash-GRPO": "flash"}
LAYOUT = {"fig4": ("window", "flash"), "fig5": ("full", "flash")}


def matches_paper(study: Study) -> bool:
    """Return True if a study has the paper's model and reward: Wan2.1 1.3B and HPSv3, in the run's process or on a server."""
    return len(study.runs) > 0 and is_of_its_model(study) and _is_hpsv3s(study.evaluations)


def is_of_its_model(study: Study) -> bool:
    def is_same(run: object) -> bool:
        architecture = run.config.get("model", {}).get("architecture") or {}
        return "1.3b" in run.model.lower() or architecture.items() >= ARCHITECTURE.items()

    return all(is_same(run) for run in study.runs.itertuples())


def _is_hpsv3s(evaluations: pd.DataFrame) -> bool:
    """Return True if the reward consists of HPSv3 alone: the total equals the part of this name."""
    part = evaluations.get("reward_parts.hpsv3")
    return part is not None and np.allclose(part, evaluations["reward_mean"], rtol=1e-4)


def paper_curves(figure: str, split: str) -> dict[str, pd.DataFrame]:
    """Return the curves read off a figure, gpu_hours and hpsv3 (about ±0.05), by our name of the method."""
    table = pd.read_csv(PAPER / "reward_curves.csv")
    some = table[(table["figure"] == figure) & (table["split"] == split)]
    return {METHOD_OF[name]: part for name, part in some.groupby("method", sort=False)}


def reward_figure(axes: tuple[Axes, Axes], study: Study, figure: str, cost: str = "device_hours") -> tuple[Axes, Axes]:
    """Draw Figure 4 (Fast1 and Flash) or 5 (full and Flash): training reward left, evaluation reward right."""
    some = study.only(LAYOUT[figure])
    figures.training_curves(axes[0], some, cost)
    figures.reward_against_cost(axes[1], some, cost)
    if matches_paper(study) and cost in ("device_hours", "gpu_days"):
        for ax, split in zip(axes, ("train_smoothed", "eval"), strict=True):
            _overlay(ax, figure, split, 1.0 if cost == "device_hours" else 24.0)
    axes[0].set_title("Training")
    axes[1].set_title("Evaluation")
    return axes


def _overlay(ax: Axes, figure: str, split: str, divisor: float) -> None:
    for method, curve in paper_curves(figure, split).items():
        look = style.look(method)
        ax.plot(
            curve["gpu_hours"] / divisor,
            curve["hpsv3"],
            color=look.color,
            linewidth=1,
            alpha=0.55,
            linestyle=(0, (1, 2)),
            marker=look.marker,
            markersize=3,
            fillstyle="none",
            label=f"{look.short}, paper, n=1",
        )


def vbench_scores(run_dir: Path) -> dict[str, float]:
    """Return percent by dimension of Table 1, from the run's VBench results; empty if it has none."""
    file = run_dir / VBENCH_FILE
    return {name: score for name, score in read_vbench(file).items() if name in VBENCH} if file.exists() else {}


def has_vbench(study: Study) -> bool:
    return any((path / of / VBENCH_FILE).exists() for path in study.runs["path"] for of in (".", BASE))


def base_scores(study: Study) -> dict[str, float]:
    """Return VBench scores of the base model. Any run's will do, because all runs start from it."""
    return next((scores for path in study.runs["path"] if (scores := vbench_scores(path / BASE))), {})


def table1(study: Study, summaries: pd.DataFrame) -> pd.DataFrame:
    """Return Table 1: the paper's rows and, below each method's row, the study's row with intervals over seeds."""
    published = pd.read_csv(PAPER / "table1_vbench.csv")
    ours, source = _ingested(study, summaries), _source(study)
    rows = []
    for item in published.itertuples(index=False):
        rows.append(
            _table1_row(item.method, "paper", "1", item.gpu_hours, {name: getattr(item, name) for name in VBENCH})
        )
        if item.method == BASE_ROW and (base := base_scores(study)):
            rows.append(_table1_row("Base model", source, "1", np.nan, base))
        if (method := METHOD_OF.get(item.method)) in set(ours.get("arm", ())):
            rows.append(_study_row(item.method, source, ours[ours["arm"] == method]))
    others = ours[~ours["arm"].isin(METHOD_OF.values())] if len(ours) else ours
    rows += [
        _study_row(style.look(arm).name, source, others[others["arm"] == arm])
        for arm in style.ordered(others.get("arm", ()))
    ]
    return pd.DataFrame(rows)


def _source(study: Study) -> str:
    """Return the words for the study's rows; they name the model unless it is the paper's."""
    models = " and ".join(sorted({Path(model).name for model in study.runs["model"]}))
    return "this study" if is_of_its_model(study) else f"this study, {models}"


def _ingested(study: Study, summaries: pd.DataFrame) -> pd.DataFrame:
    if not len(summaries):
        return pd.DataFrame()
    paths = study.runs.set_index("run")["path"]
    scores = [vbench_scores(paths[run]) for run in summaries["run"]]
    return summaries.reset_index(drop=True).join(pd.DataFrame(scores).reindex(columns=list(VBENCH)))


def _study_row(name: str, source: str, rows: pd.DataFrame) -> dict:
    scores = {column: mean_estimate(rows[column].astype(float)) for column in VBENCH}
    return _table1_row(name, source, str(len(rows)), mean_estimate(rows["device_seconds"] / 3600), scores)


def _table1_row(name: str, source: str, n: str, hours: float | Estimate, scores: dict[str, float | Estimate]) -> dict:
    words = {column.replace("_", " ").capitalize(): scores.get(column, np.nan) for column in VBENCH}
    return {"Method": name, "Source": source, "n": n, "Device-hours": hours, **words}


def teaser_factors() -> dict[str, float]:
    """Return the training cost in the paper's teaser as a multiple of Flash's, by our name of the method.

    The paper does not state what this cost includes.
    """
    table = pd.read_csv(PAPER / "teaser_cost.csv")
    minutes = {METHOD_OF[item.method]: item.training_cost_gpu_minutes for item in table.itertuples()}
    return {method: cost / minutes["flash"] for method, cost in minutes.items()}
