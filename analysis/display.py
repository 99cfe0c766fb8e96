"""Show parts of the report in a notebook: `show(sections.rewards(given))`."""

import html
import io
from collections.abc import Iterable

from IPython.display import HTML, Image, display

from analysis import page, render, style
from analysis.shown import Material, Shown

STYLE = """<style>
.interval { display: block; white-space: nowrap; opacity: 0.7; font-size: 85%; }
td.number { text-align: right; white-space: nowrap; }
td.words, th.words { text-align: left; }
.clip { height: 64px; image-rendering: pixelated; }
</style>"""


def show(shown: Iterable[Shown]) -> None:
    """Display each item under its title, with its caption and, after a figure, how to read it and what it shows."""
    items = list(shown)
    for item in items:
        display(HTML(f"<h3>{html.escape(item.title)}</h3>"))
        if item.figure is not None:
            display(_picture(item))
        elif content := _html(item):
            display(HTML(STYLE + content))
        for text in filter(None, (item.reading, item.caption)):
            display(HTML(f"<p>{html.escape(text)}</p>"))
    if not items:
        display(HTML("<p>Nothing to show: this study lacks the runs or measurements for it.</p>"))


def show_notes(given: Material) -> None:
    """Print what a reader should know about the study before reading its numbers."""
    for note in given.study.notes or ["Nothing to note: every run was read and has completed."]:
        print(note)


def _html(item: Shown) -> str:
    if item.videos is not None:
        return page.videos_html(item.videos)
    return render.to_html(item.table) if item.table is not None else ""


def _picture(item: Shown) -> Image:
    buffer = io.BytesIO()
    with style.figure_style():
        item.figure.savefig(buffer, format="png", dpi=120)
    return Image(buffer.getvalue())
