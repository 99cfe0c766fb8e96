"""Turn a study into one page: `python -m analysis.report runs/<study> [--cost …] [--output DIR]`.

The command writes `report/` into the (first) study: `index.html` (self-contained, with figures inline), every figure as PNG
and PDF, every table as Markdown, CSV and LaTeX. It also prints the comparison table.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import jinja2

from analysis import curves, plain, pricing, ranking, render, style, tables
from analysis.captions import MEANS
from analysis.drawing import SIZE
from analysis.sections import Material, Section, Shown, all_sections, comparison, material
from analysis.study import Study, load_study
from flash_grpo.records.prices import SHOWN, load_prices

HERE = Path(__file__).parent


def make_report(given: Material, output: Path, sections: list[Section] | None = None) -> Path:
    """Write every figure, table and the page into `output`; return the page's path. sections: default `all_sections`."""
    output.mkdir(parents=True, exist_ok=True)
    sections = all_sections(given) if sections is None else sections
    blocks = [_as_block(section, output) for section in sections]
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


def _beside(study: Path, model: str | None) -> Path:
    """Return where to write the report: `report/` in a study's directory, or `NAME_report` next to an archive.

    model: whose prices the costs have, if any; it is added to the name.
    """
    name = "report" if model is None else f"report_{model}"
    return study / name if study.is_dir() else study.with_name(f"{study.name.split('.')[0]}_{name}")


def _priced_report(study: Study, options: argparse.Namespace, output: Path) -> Path:
    """Print and write the report in the estimated device-hours of another model; ValueError if it cannot be priced."""
    prices = load_prices()
    by = pricing.pricing(prices, options.prices, study, options.reward)
    given = material(pricing.priced(study, by), pricing.COST, options.target)
    given.study.notes.append(by.note)
    print_summary(given)
    return make_report(given, output, ranking.priced_sections(given, by, prices, study))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__.split("\n")[0])
    parser.add_argument("study", nargs="+", type=Path, help="directories of runs, read as one study")
    parser.add_argument("--output", type=Path, help="where to write (default: report/ in the first study)")
    costs = [cost for cost in curves.COSTS if cost != pricing.COST]
    parser.add_argument("--cost", choices=costs, help="cost axis and equal budget (default: device_seconds)")
    parser.add_argument("--target", type=float, help="reward for cost-to-target (default: half of the best gain)")
    known = load_prices()
    parser.add_argument(
        "--prices", metavar="MODEL", help=f"estimate costs for another model: {', '.join(known.models)} ({SHOWN})"
    )
    parser.add_argument(
        "--reward",
        metavar="NAME",
        action="append",
        default=[],
        help=f"with --prices, a reward that scores every video: {', '.join(known.rewards)} (default: the study's own, if it "
        "has a price, else the model's usual one)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if absent := [path for path in options.study if not path.exists()]:
        parser.error(f"no such study: {', '.join(map(str, absent))}")
    if options.prices and options.cost:
        parser.error("--cost: --prices has an axis of its own, estimated device-hours; leave out one of the two")
    if options.reward and not options.prices:
        parser.error("--reward: it is priced, not computed; name a model too: --prices MODEL")
    output = options.output or _beside(options.study[0], options.prices)
    study = load_study(*options.study)
    if not study.paths:  # every archive was refused
        parser.exit(2, f"error: {study.notes[0]}\n")
    if options.prices:
        try:
            page = _priced_report(study, options, output)
        except ValueError as error:
            parser.error(str(error))
    else:
        given = material(study, options.cost or "device_seconds", options.target)
        print_summary(given)
        page = make_report(given, output)
    print(f"Report: {page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
