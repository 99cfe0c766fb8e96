"""Write a report: the page, and beside it every figure as PNG and PDF and every table as Markdown, CSV and LaTeX."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from analysis import interactive, render, settings, style, summary
from analysis.drawing import SIZE
from analysis.sections import all_sections
from analysis.shown import Material, Section, Shown
from analysis.videos import Sheet

HERE = Path(__file__).parent
COLOURS, PRINTED = 128, 0.6  # of pictures on the page: colours, and the size of a chart's
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True)


def make_report(given: Material, output: Path, sections: list[Section] | None = None) -> Path:
    """Write every figure, table and the page into `output`; return the page's path. sections: default `all_sections`."""
    output.mkdir(parents=True, exist_ok=True)
    sections = all_sections(given) if sections is None else sections
    blocks = [_as_block(section, output) for section in sections]
    page = output / "index.html"
    content = {
        "name": given.study.name,
        "facts": settings.facts(given.study),
        "lead": lead(given),
        "sections": blocks,
        "notes": [*given.study.notes, *_missing_characters(given)],
        "css": (HERE / "report.css").read_text(),
        "plotly": (HERE / "vendor" / "plotly-basic.min.js").read_text() if _has_charts(blocks) else "",
        "script": (HERE / "report.js").read_text(),
    }
    page.write_text(TEMPLATES.get_template("report.html.j2").render(content))
    return page


def _missing_characters(given: Material) -> list[str]:
    """Return a note if the figures' fonts lack characters of the methods' names; the page itself has the browser's fonts."""
    missing = style.undrawable(style.look(arm).name for arm in given.study.runs["arm"])
    way_out = "install a font that has them, such as Noto Sans CJK, and make the report again"
    return [f"PNG and PDF figures show empty boxes for {missing}: {way_out}."] if missing else []


def _has_charts(blocks: list[dict[str, Any]]) -> bool:
    return any(item.get("chart") for block in blocks for item in block["shown"])


def lead(given: Material) -> list[str]:
    """Return the sentences that the page begins with: the verdicts, and which method is ahead, or each run's gain."""
    if not len(given.summaries):
        return []
    claims = summary.conclusion(given.verdicts) if summary.tested(given.verdicts) else ""
    ahead = summary.highest(given.comparison)
    return [text for text in (claims, ahead) if text] or [summary.gains(given.study)]


def _as_block(section: Section, output: Path) -> dict[str, Any]:
    shown = [_written(item, output) for item in section.shown]
    return {"title": section.title, "id": _anchor(section.title), "text": section.text, "shown": shown}


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _written(item: Shown, output: Path) -> dict[str, Any]:
    """Write the files of one item; return what the page shows of it."""
    block = {name: getattr(item, name) for name in ("name", "title", "caption", "reading", "folded")}
    if item.figure is not None:
        return block | _write_figure(item, output)
    if item.table is not None:
        return block | _write_table(item, output)
    return block | ({"videos_html": videos_html(item.videos)} if item.videos is not None else {})


def _write_figure(item: Shown, output: Path) -> dict[str, Any]:
    picture = output / f"{item.name}.png"
    with style.figure_style():
        item.figure.savefig(picture)
        item.figure.savefig(picture.with_suffix(".pdf"), metadata={"CreationDate": None})
    chart = interactive.chart(item.figure)
    image = _small(picture) if chart else _inline(picture)
    return {"image": image, "wide": item.figure.get_figwidth() > SIZE[0], "chart": _as_script(chart)}


def videos_html(sheet: Sheet) -> str:
    """Return the sheet as a table of animations, with all of them inside."""
    return str(TEMPLATES.get_template("videos.html.j2").module.sheet(sheet))


def _inline(picture: Path) -> str:
    """Return a picture as a data URI, in COLOURS colours: a third of the file's size."""
    buffer = io.BytesIO()
    with Image.open(picture) as full:
        full.convert("RGB").quantize(COLOURS).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _small(picture: Path) -> str:
    """Return a chart's picture as a small data URI: it is seen in print only, and without JavaScript."""
    buffer = io.BytesIO()
    with Image.open(picture) as full:
        size = (round(PRINTED * full.width), round(PRINTED * full.height))
        full.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "webp", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _as_script(chart: dict[str, Any] | None) -> str:
    """Return a chart as JSON that can stand in a script element whatever its names hold; '' for None."""
    return json.dumps(chart).replace("<", "\\u003c") if chart else ""


def _write_table(item: Shown, output: Path) -> dict[str, Any]:
    (output / f"{item.name}.md").write_text(f"{render.to_markdown(item.table)}\n{item.caption}\n")
    (output / f"{item.name}.csv").write_text(render.to_csv(item.table))
    (output / f"{item.name}.tex").write_text(render.to_latex(item.table, item.caption, item.name))
    return {"html": render.to_html(item.table)}
