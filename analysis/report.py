"""Turn a study into one page: `python -m analysis.report runs/<study> [--cost …] [--output DIR]`.

The command writes `report/` into the (first) study: `index.html` (self-contained, with figures inline), every figure as PNG
and PDF, every table as Markdown, CSV and LaTeX. It also prints the comparison table.
"""

import argparse
from pathlib import Path

from analysis import curves, pricing, ranking, render, tables
from analysis.captions import MEANS
from analysis.page import make_report
from analysis.sections import comparison
from analysis.shown import Material, material
from analysis.study import Study, load_study
from flash_grpo.arguments import Arguments
from flash_grpo.records.prices import SHOWN, load_prices


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
    parser = Arguments(prog="python -m analysis.report", description=__doc__.split("\n")[0])
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
