"""Hold what a report shows: sections of figures, tables and videos, and the data that they are made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from analysis import curves, mechanism, style, tables, verdicts
from analysis.study import Study
from analysis.videos import Sheet


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure, a table or videos with their caption, or a caption alone.

    name: its file name. figure, table, videos: one of them, or none: then the caption says what is not drawn. folded: hidden
    on the page until clicked. reading: how to read the figure, and what it shows here.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    videos: Sheet | None = None
    folded: bool = False
    reading: str = ""

    def __post_init__(self) -> None:
        """Drop the column that names the SDE noise if the table has only one."""
        if self.table is not None and "SDE noise" in self.table and self.table["SDE noise"].nunique() < 2:
            object.__setattr__(self, "table", self.table.drop(columns="SDE noise"))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report: a title, a paragraph, and what it shows."""

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

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        return verdicts.verdicts(self.study, self.summaries, self.measurements, self.cost)

    @cached_property
    def comparison(self) -> pd.DataFrame:
        return tables.comparison_table(self.study, self.summaries, self.cost)

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
