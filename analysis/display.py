"""Show parts of the report in a notebook: `show(sections.rewards(given))`."""

import html
import io
from collections.abc import Iterable

from IPython.display import HTML, Image, display

from analysis import render, style
from analysis.sections import Material, Shown


def show(shown: Iterable[Shown]) -> None:
    for item in shown:
        display(HTML(f"<h3>{html.escape(item.title)}</h3>"))
        display(_picture(item) if item.figure else HTML(render.to_html(item.table)))
        display(HTML(f"<p>{html.escape(item.caption)}</p>"))


def show_notes(given: Material) -> None:
    """Print what a reader should know about the study before reading its numbers."""
    for note in given.study.notes or ["Nothing to note: every run was read and has completed."]:
        print(note)


def _picture(item: Shown) -> Image:
    buffer = io.BytesIO()
    with style.figure_style():
        item.figure.savefig(buffer, format="png", dpi=120)
    return Image(buffer.getvalue())
