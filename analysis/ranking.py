"""Show how the ranking of methods changes with the prices, and mark what is an estimate: the report's part on `--prices`."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import curves, pricing, sections, style, tables
from analysis.captions import MEANS
from analysis.pricing import COST, TRANSFORMER, Pricing
from analysis.sections import Material, Section, Shown
from analysis.statistics import Estimate, mean_estimate
from analysis.study import Study
from flash_grpo.records.prices import SHOWN, Prices

INCLUDED = {"transformer": TRANSFORMER, "+ decodes": (*TRANSFORMER, "decode"), "+ rewards": pricing.PHASES}
MEASURED = ("Before and after", "Stability", "Mechanism", "What was run")  # sections without a cost of training in them
CAPTIONS = {"cost_per_iteration": "Counts of an iteration × unit prices. Factors are to Flash-GRPO."}
RANKING = """All costs of training on this page are estimates, see the notes. The ranking is of the methods' mean rewards,
on each SDE, at the largest cost that all runs reached, which stands in parentheses."""


def scenarios(study: Study, prices: Prices, rewards: tuple[str, ...] = ()) -> dict[str, pd.DataFrame]:
    """Return the study's `curves.run_summaries` by way of counting the cost, in words with the equal cost in parentheses."""
    counted = {f"this study's PFLOP ({curves.equal_budget(study, 'pflop'):.3g})": curves.run_summaries(study, "pflop")}
    for name, model in prices.models.items():
        by = pricing.pricing(prices, name, study, rewards)
        for words, phases in INCLUDED.items():
            priced = pricing.priced(study, by, phases)
            hours = f"{curves.equal_budget(priced, COST):.3g} h"
            counted[f"{model.words.split()[-1]}, {words} ({hours})"] = curves.run_summaries(priced, COST)
    return counted


def reward_table(counted: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return each method's reward at equal cost, a column for each way of counting the cost. counted: `scenarios`."""
    return _by_method(counted, _reward)


def cost_table(counted: dict[str, pd.DataFrame], reference: str = "flash") -> pd.DataFrame:
    """Return what an iteration of each method costs as a multiple of the reference's, NaN without it."""

    def times(summaries: pd.DataFrame, arm: str, noise: str) -> float:
        same = summaries[summaries["noise"] == noise]
        each = (same["spent"] / same["iterations"]).groupby(same["arm"]).mean()
        return float(each[arm] / each.get(reference, np.nan))

    table = _by_method(counted, times)
    return table.rename(columns={name: name.partition(" (")[0] for name in counted})


def _by_method(counted: dict[str, pd.DataFrame], cell: Callable[[pd.DataFrame, str, str], object]) -> pd.DataFrame:
    rows = [
        {"Method": style.look(arm).name, "SDE noise": noise, "n": len(rows)}
        | {words: cell(summaries, arm, noise) for words, summaries in counted.items()}
        for noise, arm, rows in tables.arms(next(iter(counted.values())))
    ]
    return pd.DataFrame(rows)


def _reward(summaries: pd.DataFrame, arm: str, noise: str) -> Estimate:
    return mean_estimate(curves.by_seed(summaries[summaries["noise"] == noise], arm, "at_budget"))


def ranking_table(rewards: pd.DataFrame) -> pd.DataFrame:
    """Return the methods' ranks within their SDE, a column for each way of counting the cost. rewards: `reward_table`'s."""
    columns = list(rewards.columns[3:])
    means = rewards[columns].map(lambda estimate: estimate.value)
    ranks = means.groupby(rewards["SDE noise"]).rank(ascending=False, method="min").astype("Int64")
    return rewards.assign(**{name: ranks[name].astype(str) for name in columns})


def changed(ranks: pd.DataFrame) -> str:
    """Return the sentence that says in how many rows a rank differs from the one at this study's PFLOP."""
    differs = ranks.iloc[:, 4:].ne(ranks.iloc[:, 3], axis=0).any(axis=1)
    return f"In {differs.sum()} of {len(ranks)} rows a rank changes with the prices."


def priced_sections(given: Material, by: Pricing, prices: Prices, measured: Study) -> list[Section]:
    """Return the report's sections with estimates marked as such, after a section on the prices.

    given: made from the priced study. measured: the study as it was recorded.
    """
    shown = list(_first(by, prices, measured)) if len(given.summaries) else []
    first = Section(title=f"Priced for {by.model.words}", text=RANKING, shown=shown)
    return [first, *(_marked(section, by) for section in sections.all_sections(given))]


def _first(by: Pricing, prices: Prices, measured: Study) -> Iterator[Shown]:
    counted = scenarios(measured, prices, tuple(by.rewards))
    rewards = reward_table(counted)
    hours = f"h: estimated device-hours on {by.device}, prices from {SHOWN}; rewards: {', '.join(by.rewards)}."
    names = ", ".join(model.words for model in prices.models.values())
    title = f"Ranking at equal cost: estimated for {names}"
    ranks = ranking_table(rewards)
    yield Shown(name="ranking", title=title, caption=f"{changed(ranks)} {hours}", table=ranks)
    caption = f"{MEANS} {hours}"
    yield Shown(name="ranking_rewards", title="The rewards behind the ranks", caption=caption, table=rewards)
    title, caption = "Cost of an iteration as a multiple of Flash-GRPO's", f"Means over seeds. {hours}"
    yield Shown(name="relative_cost", title=f"{title}: estimated", caption=caption, table=cost_table(counted))
    caption = f"Of one {by.model.device} where the source does not name another device. From {SHOWN}."
    yield Shown(name="prices", title="Unit prices", caption=caption, table=pricing.price_table(by))


def _marked(section: Section, by: Pricing) -> Section:
    """Return the section with the estimate in the title of everything that shows a cost of training."""
    if section.title in MEASURED:
        return section
    return replace(section, shown=[_marked_item(item, by) for item in section.shown])


def _marked_item(item: Shown, by: Pricing) -> Shown:
    if "_against_pflop" in item.name or (item.figure is None and item.table is None):
        return item  # this study's own PFLOP, as counted; or words without a cost
    if item.figure is not None:
        _write_above(item.figure, by.title)
    caption = next((words for name, words in CAPTIONS.items() if item.name.startswith(name)), item.caption)
    caption = caption if item.figure else f"{caption} Costs: {by.title}."
    return replace(item, title=f"{item.title} ({by.title})", caption=caption)


def _write_above(figure: Figure, words: str) -> None:
    """Write a line above all that the figure shows, so that the picture alone says that it is an estimate."""
    with style.figure_style():
        top = figure.get_tightbbox().y1 / figure.get_figheight()
        figure.text(0.01, top + 0.02, words[0].upper() + words[1:], fontsize=7.5, color="#a03000", va="bottom")
