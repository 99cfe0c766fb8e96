"""Make the sections of the report, in order. A section is a function that yields what it shows."""

from collections.abc import Iterator

from analysis import (
    ablation,
    curves,
    figures,
    guarding,
    paper,
    readings,
    settings,
    stability,
    style,
    summary,
    tables,
    videos,
)
from analysis.captions import (
    ABLATION,
    CHANGED,
    CLAIMS,
    FRONTIER,
    GUARDS,
    HOLM,
    LAMBDA,
    MEANS,
    MECHANISM,
    PHASES,
    STABILITY,
    TO_TARGET,
    VERDICTS,
    VIDEOS,
)
from analysis.drawing import drawn, drawn_pair
from analysis.measured import mechanisms
from analysis.panels import evaluation_panels, training_panels
from analysis.shown import Material, Section, Shown, material
from analysis.sooner import sooner
from analysis.study import Study

__all__ = ["Material", "Section", "Shown", "all_sections", "evaluation_panels", "material", "mechanisms"]


def all_sections(given: Material) -> list[Section]:
    """Return every section that has something to show."""
    makers = {
        "The paper's claims in this study": (claims, ""),
        "Reward against cost": (rewards, ""),
        "Before and after": (before_and_after, ""),
        "What else changed": (evaluation_panels, CHANGED),
        "How much sooner": (sooner, FRONTIER),
        "Ablation": (ablations, ABLATION),
        "Cost": (costs, ""),
        "Stability": (steadiness, STABILITY),
        "Guards": (guarded, GUARDS),
        "Mechanism": (mechanisms, MECHANISM),
        "Beside the paper": (beside_the_paper, "The paper's numbers are single runs without intervals."),
        "Every run": (every_run, ""),
        "What was run": (settings.shown, ""),
    }
    made = [Section(title=title, text=text, shown=list(maker(given))) for title, (maker, text) in makers.items()]
    return [section for section in made if section.shown]


def claims(given: Material) -> Iterator[Shown]:
    if not len(given.summaries) and not len(given.measurements):
        return
    if summary.tested(given.verdicts):
        table = summary.summary_table(given.verdicts)
        yield Shown(name="claims", title="Verdicts", caption=CLAIMS, table=table)
    caption = f"{MEANS} {VERDICTS} {LAMBDA}"
    title = "Every comparison, with n and p"
    yield Shown(name="verdicts", title=title, caption=caption, table=given.verdicts, folded=True)


def comparison(given: Material) -> Iterator[Shown]:
    if len(given.summaries):
        caption = f"{MEANS} Evaluation: EMA weights, ODE sampler, the same noise for every method. {PHASES}"
        yield Shown(name="comparison", title="Comparison", caption=caption, table=given.comparison)


def rewards(given: Material) -> Iterator[Shown]:
    yield from comparison(given)
    for suffix, words, study in given.by_noise():
        for cost in dict.fromkeys([given.cost, "pflop"]) if len(study.evaluations) else ():
            yield Shown(
                name=f"reward_against_{cost}{suffix}",
                title=f"Evaluation reward against {curves.cost_name(cost, study.on_cpu)}{words}",
                caption=figures.means_and_seeds(study, study.evaluations),
                figure=drawn(lambda ax, study=study, cost=cost: figures.reward_against_cost(ax, study, cost)),
                reading=readings.of_curves(readings.AT_EQUAL_COST, study, study.evaluations, cost),
            )
        if len(study.iterations):
            yield _training(study, given.cost, suffix, words)


def _training(study: Study, cost: str, suffix: str, words: str) -> Shown:
    caption = "Not comparable between plans: full-trajectory rollouts end in SDE noise, one-step rollouts do not."
    lines = figures.means_and_seeds(study, study.iterations, points=False)
    smooth = figures.smoothing_width(study.iterations)
    return Shown(
        name=f"training_against_{cost}{suffix}",
        title=f"Training reward{words}",
        caption=f"{caption} {lines} Smoothed over {smooth} iterations.",
        figure=drawn(lambda ax: figures.training_curves(ax, study, cost)),
        reading=readings.of_training(study, cost, smooth),
    )


def before_and_after(given: Material) -> Iterator[Shown]:
    for suffix, words, study in given.by_noise():
        found, absent = videos.sheets(study)
        for index, sheet in enumerate(found):
            yield Shown(
                name=f"before_and_after{suffix}{f'_{index + 1}' * bool(index)}",
                title=f"Videos before and after training{words}",
                caption=f"{VIDEOS} {absent}".strip(),
                videos=sheet,
            )
        if not found and absent:
            yield Shown(name=f"no_videos{suffix}", title=f"No videos{words}", caption=absent)


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
            read = readings.of_differences(part)
            yield Shown(name=f"difference_forest_{noise}", title=title, caption=MEANS, figure=forest, reading=read)


def costs(given: Material) -> Iterator[Shown]:
    if len(given.summaries):
        caption = f"{MEANS} Evaluation is not counted. The paper does not state what its teaser's cost includes."
        yield Shown(
            name="cost", title="Cost of an iteration", caption=caption, table=tables.cost_table(given.summaries)
        )
    if any(name.startswith("seconds.") for name in given.summaries) and len(given.summaries):
        yield from _cost_bars(given)


def _cost_bars(given: Material) -> Iterator[Shown]:
    for suffix, words, study in given.by_noise():
        part = given.summaries[given.summaries["run"].isin(study.runs["run"])]
        yield Shown(
            name=f"cost_per_iteration{suffix}",
            title=f"Device-seconds per iteration{words}",
            caption=f"{PHASES} Factors are to Flash-GRPO, as in the table.",
            figure=drawn(lambda ax, study=study, part=part: figures.cost_bars(ax, study, part), legend=False),
            reading=readings.of_costs(part),
        )


def steadiness(given: Material) -> Iterator[Shown]:
    if len(table := stability.stability(given.study)):
        yield Shown(name="stability", title="Collapsed seeds", caption=f"{MEANS} Wilson's intervals.", table=table)
    yield from training_panels(given)


def guarded(given: Material) -> Iterator[Shown]:
    found = guarding.flagged(given.study)
    if not len(given.summaries) or not (
        len(found) or given.study.evaluations[[*guarding.MEASURED.values()]].notna().any(axis=None)
    ):
        return
    table = guarding.guards_table(given.study, found, given.cost)
    yield Shown(name="guards", title="Runs in which a guard held", caption=MEANS, table=table)
    if len(found):
        runs = guarding.flagged_table(given.study, found, given.cost)
        caption = "Each guard's first evaluation in each run; on the curves above it is ringed."
        yield Shown(
            name="flagged_runs",
            title=f"When and why, {len(runs)} times",
            caption=caption,
            table=runs,
            folded=len(runs) > 12,
        )


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
                some = study.only(arms)
                read = readings.of_curves(readings.AT_EQUAL_COST, some, some.evaluations, cost)
                yield Shown(name=f"{figure}{suffix}", title=title, caption=caption, figure=pair, reading=read)


def every_run(given: Material) -> Iterator[Shown]:
    if len(given.study.runs):
        caption = "The interval of a single run's gain is over prompts, not over seeds."
        table = tables.runs_table(given.study, given.summaries)
        yield Shown(name="runs", title=f"{len(table)} runs", caption=caption, table=table, folded=True)
