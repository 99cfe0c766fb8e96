"""Make the sections of the report, in order. A section is a function that yields figures and tables with captions."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis import ablation, curves, figures, frontier, mechanism, paper, stability, style, tables, verdicts
from analysis.captions import (
    ABLATION,
    FRONTIER,
    HOLM,
    LAMBDA,
    MEANS,
    MECHANISM,
    REPEATS,
    STABILITY,
    TO_TARGET,
    VERDICTS,
)
from analysis.drawing import drawn, drawn_pair
from analysis.study import Study


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure or a table with its caption. name: its file name. folded: hidden on the page until clicked."""

    name: str
    title: str
    caption: str
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    folded: bool = False

    def __post_init__(self) -> None:
        """Drop the column that names the SDE noise if the table has only one."""
        if self.table is not None and "SDE noise" in self.table and self.table["SDE noise"].nunique() < 2:
            object.__setattr__(self, "table", self.table.drop(columns="SDE noise"))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report: a title, a paragraph, and figures and tables."""

    title: str
    text: str
    shown: list[Shown]


@dataclass(frozen=True, kw_only=True)
class Material:
    """The data that every section is made from.

    summaries: see `curves.run_summaries`. measurements: see `mechanism.load_mechanism`. cost: a key of `curves.COSTS`.
    target: the reward for cost-to-target, None for the default.
    """

    study: Study
    summaries: pd.DataFrame
    measurements: pd.DataFrame
    cost: str
    target: float | None = None

    def by_noise(self) -> Iterator[tuple[str, str, Study]]:
        """Yield for each SDE noise a file suffix, words for a title, and the study's runs with this noise.

        Suffix and words are empty if the study has only one noise.
        """
        noises = style.ordered_noises(self.study.runs["noise"])
        for noise in noises:
            suffix_and_words = (f"_{noise}", f", {style.noise_name(noise)}") if len(noises) > 1 else ("", "")
            yield *suffix_and_words, self.study.with_noise(noise)


def material(study: Study, cost: str, target: float | None = None) -> Material:
    measurements, notes = mechanism.load_mechanism(study.paths)
    study.notes.extend(note for note in notes if note not in study.notes)
    summaries = curves.run_summaries(study, cost)
    return Material(study=study, summaries=summaries, measurements=measurements, cost=cost, target=target)


def all_sections(given: Material) -> list[Section]:
    """Return every section that has something to show."""
    makers = {
        "What this study can and cannot show": (claims, ""),
        "Reward against cost": (rewards, "Bands: pointwise 95 % interval of the mean over seeds, at equal cost."),
        "How much sooner": (sooner, FRONTIER),
        "Ablation": (ablations, ABLATION),
        "Cost": (costs, ""),
        "Stability": (steadiness, STABILITY),
        "Mechanism": (mechanisms, MECHANISM),
        "Beside the paper": (beside_the_paper, "The paper's numbers are single runs without intervals."),
        "Every run": (every_run, ""),
    }
    made = [Section(title=title, text=text, shown=list(maker(given))) for title, (maker, text) in makers.items()]
    return [section for section in made if section.shown]


def claims(given: Material) -> Iterator[Shown]:
    if len(given.summaries) or len(given.measurements):
        table = verdicts.verdicts(given.study, given.summaries, given.measurements, given.cost)
        caption = f"{MEANS} {VERDICTS} {LAMBDA}"
        yield Shown(name="verdicts", title="The paper's claims in this study", caption=caption, table=table)


def comparison(given: Material) -> Iterator[Shown]:
    if len(given.summaries):
        caption = f"{MEANS} Evaluation: EMA weights, ODE sampler, the same noise for every method."
        table = tables.comparison_table(given.study, given.summaries, given.cost)
        yield Shown(name="comparison", title="Comparison", caption=caption, table=table)


def rewards(given: Material) -> Iterator[Shown]:
    yield from comparison(given)
    for suffix, words, study in given.by_noise():
        for cost in dict.fromkeys([given.cost, "pflop"]) if len(study.evaluations) else ():
            yield Shown(
                name=f"reward_against_{cost}{suffix}",
                title=f"Evaluation reward against {curves.cost_name(cost)}{words}",
                caption="" if study.runs["finished"].all() else "Thin lines: runs that have not completed.",
                figure=drawn(lambda ax, study=study, cost=cost: figures.reward_against_cost(ax, study, cost)),
            )
        if len(study.iterations):
            yield _training(study, given.cost, suffix, words)


def _training(study: Study, cost: str, suffix: str, words: str) -> Shown:
    caption = "Not comparable between plans: full-trajectory rollouts end in SDE noise, one-step rollouts do not. "
    return Shown(
        name=f"training_against_{cost}{suffix}",
        title=f"Training reward{words}",
        caption=f"{caption}Smoothed over {figures.smoothing_width(study.iterations)} iterations.",
        figure=drawn(lambda ax: figures.training_curves(ax, study, cost)),
    )


def sooner(given: Material) -> Iterator[Shown]:
    if len(table := frontier.frontier_table(given.study, given.summaries, given.cost)):
        yield Shown(name="frontier", title="Cost to Flash-GRPO's final reward", caption=MEANS, table=table)


def ablations(given: Material) -> Iterator[Shown]:
    if not len(given.summaries):
        return
    table = ablation.ablation(given.study, given.summaries, given.cost, given.target)
    yield Shown(name="ablation", title="Ablation", caption=f"{MEANS} {TO_TARGET}", table=table)
    if len(effects := ablation.effects_table(given.summaries)):
        caption = f"Smallest detectable: what a paired t test at this n and spread finds four times in five. {HOLM}"
        yield Shown(name="effects", title="Main effects and interaction", caption=caption, table=effects)
    differences = ablation.differences_from_flash(given.study, given.summaries, given.cost)
    if len(differences) and differences["n"].any():
        caption = f"n counts seeds. The interval over prompts holds for these seeds only. {HOLM}"
        yield Shown(name="differences", title="Differences from Flash-GRPO", caption=caption, table=differences)
        for noise in style.ordered_noises(differences["SDE noise"]):
            part = differences[differences["SDE noise"] == noise]
            forest = drawn(lambda ax, part=part: ablation.difference_forest(ax, part), legend=False)
            title = ", ".join(filter(None, ["Differences from Flash-GRPO", style.noise_name(noise)]))
            yield Shown(name=f"difference_forest_{noise}", title=title, caption=MEANS, figure=forest)


def costs(given: Material) -> Iterator[Shown]:
    if len(given.summaries):
        caption = f"{MEANS} Evaluation is not counted. The paper does not state what its teaser's cost includes."
        yield Shown(
            name="cost", title="Cost of an iteration", caption=caption, table=tables.cost_table(given.summaries)
        )
    if any(name.startswith("seconds.") for name in given.summaries) and len(given.summaries):
        bars = drawn(lambda ax: figures.cost_bars(ax, given.study, given.summaries), legend=False)
        caption = "Divided by rank 0's wall time of rollout, decoding, reward and update. Factors are to Flash-GRPO."
        yield Shown(name="cost_per_iteration", title="Device-seconds per iteration", caption=caption, figure=bars)


def steadiness(given: Material) -> Iterator[Shown]:
    if len(table := stability.stability(given.study)):
        yield Shown(name="stability", title="Collapsed seeds", caption=f"{MEANS} Wilson's intervals.", table=table)
    for suffix, words, study in given.by_noise():
        for column, label in stability.PANELS.items():
            if study.iterations[column].notna().any():
                panel = drawn(lambda ax, study=study, column=column: stability.stability_curves(ax, study, column))
                caption = f"Smoothed over {figures.smoothing_width(study.iterations)} iterations."
                yield Shown(name=f"{column}{suffix}", title=f"{label}{words}", caption=caption, figure=panel)


def mechanisms(given: Material) -> Iterator[Shown]:
    """Yield tables first, so that the figures are side by side."""
    measured = set(given.measurements["quantity"])
    makers = {
        "gradient_norm": ("gradient_norms", "Gradient norm and λ", mechanism.gradient_table),
        "variance_share": ("variance_shares", "What explains rewards in a group", mechanism.variance_shares),
        "alignment": ("alignment", "Estimator alignment", mechanism.alignment_table),
    }
    for quantity, (name, title, table) in makers.items():
        if quantity in measured:
            caption = f"{REPEATS} {LAMBDA}" if quantity == "gradient_norm" else REPEATS
            yield Shown(name=name, title=title, caption=caption, table=table(given.measurements))
    for quantity, panels in (("gradient_norm", _gradients), ("alignment", _alignments), ("variance_share", _shares)):
        if quantity in measured:
            yield from panels(given.measurements)


def _gradients(measurements: pd.DataFrame) -> Iterator[Shown]:
    norms = measurements[measurements["quantity"] == "gradient_norm"]
    for noise in style.ordered_noises(norms["noise"]):
        panel = drawn(lambda ax, noise=noise: mechanism.gradient_against_lambda(ax, norms, noise))
        title = f"Gradient norm against λ, {style.noise_name(noise)}"
        caption = f"{REPEATS} Open markers: steps that a one-step method does not train."
        yield Shown(name=f"gradient_against_lambda_{noise}", title=title, caption=caption, figure=panel)


def _alignments(measurements: pd.DataFrame) -> Iterator[Shown]:
    table = mechanism.alignment_table(measurements)
    for noise in style.ordered_noises(table["SDE noise"]):
        part = table[table["SDE noise"] == noise]
        for column in ("Cosine", "Cosine per device-second"):
            panel = drawn(lambda ax, part=part, column=column: mechanism.alignment(ax, part, column), legend=False)
            name = f"{column.lower().replace(' ', '_').replace('-', '_')}_{noise}"
            yield Shown(name=name, title=f"{column}, {style.noise_name(noise)}", caption=REPEATS, figure=panel)


def _shares(measurements: pd.DataFrame) -> Iterator[Shown]:
    panel = drawn(lambda ax: mechanism.variance_by_source(ax, measurements), legend=False)
    yield Shown(name="variance_by_source", title="What explains rewards in a group", caption=REPEATS, figure=panel)


def table1(given: Material) -> Iterator[Shown]:
    caption = "VBench in percent. The paper's rows are single runs, 350 GPU-hours a method, on unnamed hardware."
    yield Shown(name="table1", title="Table 1", caption=caption, table=paper.table1(given.study, given.summaries))


def beside_the_paper(given: Material) -> Iterator[Shown]:
    if paper.has_vbench(given.study):
        yield from table1(given)
    cost = given.cost if not paper.matches_paper(given.study) else "device_hours"
    for figure, arms in paper.LAYOUT.items():
        for suffix, words, study in given.by_noise():
            if set(arms) <= set(study.evaluations["arm"]):
                pair = drawn_pair(lambda axes, study=study, f=figure: paper.reward_figure(axes, study, f, cost))
                title = f"The layout of Figure {figure[-1]}{words}"
                caption = "Dotted with open markers: the paper's curves, read off its figures (about ±0.05), n = 1."
                caption = caption if paper.matches_paper(given.study) else "Another model or reward: no paper curves."
                yield Shown(name=f"{figure}{suffix}", title=title, caption=caption, figure=pair)


def every_run(given: Material) -> Iterator[Shown]:
    if len(given.study.runs):
        caption = "The interval of a single run's gain is over prompts, not over seeds."
        table = tables.runs_table(given.study, given.summaries)
        yield Shown(name="runs", title=f"{len(table)} runs", caption=caption, table=table, folded=True)
