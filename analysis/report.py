"""Turn a study into one page: `python -m analysis.report runs/<study> [--cost …] [--output DIR]`.

The command writes `report/` into the (first) study: `index.html` (self-contained, with figures inline), every figure as PNG
and PDF, every table as Markdown, CSV and LaTeX. It also prints the comparison table.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import jinja2

from analysis import curves, plain, render, style, tables
from analysis.drawing import SIZE
from analysis.sections import MEANS, Material, Section, Shown, all_sections, comparison, material
from analysis.study import Study, load_study

HERE = Path(__file__).parent


def make_report(given: Material, output: Path) -> Path:
    """Write every figure, table and the page into `output`; return the page's path."""
    output.mkdir(parents=True, exist_ok=True)
    blocks = [_as_block(section, output) for section in all_sections(given)]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True)
    page = output / "index.html"
    css = (HERE / "report.css").read_text()
    page.write_text(environment.get_template("report.html.j2").render(css=css, sections=blocks, **_facts(given.study)))
    return page


def _as_block(section: Section, output: Path) -> dict[str, Any]:
    shown = [_write_figure(item, output) if item.figure else _write_table(item, output) for item in section.shown]
    return {"title": section.title, "text": section.text, "shown": shown}


def _write_figure(item: Shown, output: Path) -> dict[str, Any]:
    picture = output / f"{item.name}.png"
    with style.figure_style():
        item.figure.savefig(picture)
        item.figure.savefig(picture.with_suffix(".pdf"), metadata={"CreationDate": None})
    image = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    wide = item.figure.get_figwidth() > SIZE[0]
    return {"name": item.name, "title": item.title, "caption": item.caption, "image": image, "wide": wide}


def _write_table(item: Shown, output: Path) -> dict[str, Any]:
    (output / f"{item.name}.md").write_text(f"{render.to_markdown(item.table)}\n{item.caption}\n")
    (output / f"{item.name}.csv").write_text(render.to_csv(item.table))
    (output / f"{item.name}.tex").write_text(render.to_latex(item.table, item.caption, item.name))
    return {
        "name": item.name,
        "title": item.title,
        "caption": item.caption,
        "table": render.to_html(item.table),
        "folded": item.folded,
    }


def _facts(study: Study) -> dict[str, Any]:
    """Return what the head of the page says about the study."""
    runs = study.runs
    commits = sorted(
        {plain.words(git.get("commit", ""))[:10] + ("+" if git.get("dirty") else "") for git in runs["git"]} - {""}
    )
    counts = runs["status"].value_counts()
    facts = {
        "Runs": ", ".join(f"{number} {status}" for status, number in counts.items()) or "none",
        "Methods": ", ".join(style.look(arm).short for arm in style.ordered(runs["arm"])) or "none",
        "Seeds": _ranges(sorted(runs["seed"].unique())),
        "Models": ", ".join(sorted(runs["model"].unique())),
        "Hardware": ", ".join(
            f"{count} × {device}" for device, count in runs.groupby("device")["world_size"].max().items()
        ),
        "Code": ", ".join(commits),
    }
    return {"name": study.name, "facts": {key: value for key, value in facts.items() if value}, "notes": study.notes}


def _ranges(seeds: list[int]) -> str:
    """Format seeds as ranges: `0–7, 20` for 0, 1, …, 7, 20."""
    starts = [seed for seed in seeds if seed - 1 not in seeds]
    ends = [seed for seed in seeds if seed + 1 not in seeds]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def print_summary(given: Material) -> None:
    """Print the comparison table and the notes for a terminal."""
    if len(given.summaries):
        [shown] = comparison(given)
        print(render.to_terminal(tables.compact(shown.table)))
        print(MEANS)
    for note in given.study.notes:
        print(f"note: {note}")


def _beside(study: Path) -> Path:
    """Return where to write the report: `report/` in a study's directory, or `NAME_report` next to an archive."""
    return study / "report" if study.is_dir() else study.with_name(study.name.split(".")[0] + "_report")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__.split("\n")[0])
    parser.add_argument("study", nargs="+", type=Path, help="directories of runs, read as one study")
    parser.add_argument("--output", type=Path, help="where to write (default: report/ in the first study)")
    parser.add_argument(
        "--cost", choices=list(curves.COSTS), default="device_seconds", help="cost axis and equal budget"
    )
    parser.add_argument("--target", type=float, help="reward for cost-to-target (default: half of the best gain)")
    options = parser.parse_args(arguments)
    if absent := [path for path in options.study if not path.exists()]:
        parser.error(f"no such study: {', '.join(map(str, absent))}")
    study = load_study(*options.study)
    if not study.paths:  # every archive was refused
        parser.exit(2, f"error: {study.notes[0]}\n")
    given = material(study, options.cost, options.target)
    print_summary(given)
    page = make_report(given, options.output or _beside(options.study[0]))
    print(f"Report: {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
