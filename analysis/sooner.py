"""Make the section on how much sooner than Flash-GRPO a method gets to its final reward, with how diverse videos."""

from collections.abc import Iterator

import numpy as np

from analysis import front, frontier
from analysis.captions import MEANS, PAID_WITH_DIVERSITY, UPPER_LEFT
from analysis.drawing import drawn
from analysis.shown import Material, Shown


def sooner(given: Material) -> Iterator[Shown]:
    if len(table := frontier.frontier_table(given.study, given.summaries, given.cost)):
        yield Shown(name="frontier", title="Cost to Flash-GRPO's final reward", caption=MEANS, table=table)
        yield from _fronts(given)


def _fronts(given: Material) -> Iterator[Shown]:
    found = frontier.reached_by(given.study, given.summaries, given.cost)
    for suffix, words, study in given.by_noise():
        noises = set(study.runs["noise"])
        some = [one for one in found if one.noise in noises]
        if sum(np.isfinite(one.cost) for one in some) > 1:
            yield Shown(
                name=f"reached{suffix}",
                title=f"Cost and diversity at Flash-GRPO's final reward{words}",
                caption=f"{MEANS} Grey: the Pareto front.",
                figure=drawn(lambda ax, some=some, study=study: front.reached_figure(ax, some, study, given.cost)),
                reading=f"{UPPER_LEFT} {front.unbeaten(some)}",
            )
        if some and study.evaluations["diversity"].notna().any():
            yield Shown(
                name=f"diversity_against_reward{suffix}",
                title=f"Diversity against reward{words}",
                caption="Lines: means over seeds at equal cost, from the base on. Crosses: 95 % intervals at the end.",
                figure=drawn(lambda ax, study=study: front.tradeoff(ax, study, given.cost)),
                reading=PAID_WITH_DIVERSITY,
            )
