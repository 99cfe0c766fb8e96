"""Show the states of a study's runs as a table."""

import sys
from collections import Counter

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from flash_grpo.cluster.run_state import ALIVE, OVER, RunState

COLOURS = {"running": "green", "complete": "bold green", "failed": "bold red", "cancelled": "yellow"}
NUMBERS = ("iteration", "evaluation", "training", "device-h", "billed", "useful", "restarts", "last record")


def table_of(runs: list[RunState], notice: str) -> Group:
    """Build the table: a line for each run and a last line of totals. notice: a line above the table, '' for none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for run in runs:
        state = Text(run.state, style=COLOURS.get(run.state, ""))
        table.add_row(Text(run.run), state, *_numbers(run), Text(run.why))
    return Group(*([Text(notice)] if notice else []), table, Text(totals(runs), style="bold"))


def _numbers(run: RunState) -> list[str]:
    return [
        _number(run.last.iteration, "d"),
        _number(run.last.evaluation_reward, ".3f"),
        _number(run.last.training_reward, ".3f"),
        hours(run.last.device_seconds) if run.last.iteration is not None else "",
        hours(run.billed_seconds),
        percent(run.useful_seconds, run.billed_seconds),
        str(run.restarts),
        age(run.last.age),
    ]


def totals(runs: list[RunState]) -> str:
    """Sum up the table in a line: runs by state, device-hours, and how many Slurm charges for them."""
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {state}" for state in (*OVER, *ALIVE) if counts[state])
    own = sum(run.last.device_seconds for run in runs)
    line = f"{len(runs)} run{'s' * (len(runs) > 1)}: {states}; {hours(own)} device-hours"
    billed = sum(run.billed_seconds for run in runs if run.billed_seconds)
    useful = sum(run.useful_seconds for run in runs if run.billed_seconds)
    return line + (f"; {hours(billed)} device-hours billed, {percent(useful, billed)} of them useful" if billed else "")


def hours(seconds: float | None) -> str:
    """Format seconds as hours with three digits, from 24 h on without decimals; '' for None."""
    if seconds is None:
        return ""
    return f"{seconds / 3600:.0f}" if seconds >= 86400 else f"{seconds / 3600:.3g}"


def percent(useful: float, billed: float | None) -> str:
    """Format useful / billed in percent; '' if nothing was billed."""
    return f"{100 * useful / billed:.0f} %" if billed else ""


def age(seconds: float | None) -> str:
    """Format seconds in the largest unit that gives at least 2; '' for None."""
    if seconds is None:
        return ""
    unit, size = next((pair for pair in (("d", 86400), ("h", 3600), ("min", 60)) if seconds >= 2 * pair[1]), ("s", 1))
    return f"{max(0, seconds) / size:.0f} {unit}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def console() -> Console:
    """Return a console as wide as the terminal or, for a file or pipe, wide enough that no line is broken."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=10_000)
