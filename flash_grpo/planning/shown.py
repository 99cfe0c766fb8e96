"""Show a plan: tables for readers, JSON for programs."""

import io
import json
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from flash_grpo.planning.memory import peak
from flash_grpo.planning.plan import ArmPlan, Plan, plan_of

SHOWN = 0.02e9  # bytes of the smallest term that a table of memory has
WIDE = 10_000  # columns of a file or pipe: no line is broken


def show(overrides: list[str], multirun: bool, form: bool | str) -> str:
    """Plan a command line's runs and return them as text. form: 'json' for programs, True for tables."""
    plan = plan_of(overrides, multirun)
    return json.dumps(as_json(plan), indent=1) if form == "json" else as_text(plan)


# -- for programs ---------------------------------------------------------------------------------------------------------


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values: hours are device-hours, seconds are device-seconds of an iteration by phase."""
    where = plan.allocation
    return {
        "device": {"name": where.device.name, "why": where.why, "source": where.device.source},
        "ranks": where.ranks,
        "nodes": where.nodes,
        "arms": [_arm(plan, arm) for arm in plan.arms],
        "total": totals(plan),
        "notes": plan.notes,
    }


def _arm(plan: Plan, arm: ArmPlan) -> dict[str, Any]:
    ranks = plan.allocation.ranks
    runs = [{**asdict(run), "hours": run.hours, "wall_hours": run.wall_hours(ranks)} for run in arm.runs]
    return {
        "runs": runs,
        "model": arm.model.name,
        "unit_prices": asdict(arm.work.prices),
        "scoring": asdict(arm.work.scoring),
        "reward_servers_needed": arm.servers,
        "needs": asdict(arm.needs),
    }


def totals(plan: Plan) -> dict[str, Any]:
    """Return the sums over all runs, and what they cost at the price of a device-hour."""
    runs = plan.runs
    hours, evaluation = sum(run.hours for run in runs), sum(run.evaluation_hours for run in runs)
    return {
        "runs": len(runs),
        "hours": hours,
        "evaluation_hours": evaluation,
        "evaluation_share": evaluation / hours if hours else 0.0,
        "longest_wall_hours": max(run.wall_hours(plan.allocation.ranks) for run in runs),
        "forwards": sum(run.forwards for run in runs),
        "pflop": sum(run.pflop_all + run.evaluation_pflop for run in runs),
        "money": None if plan.price is None else plan.price * hours,
    }


# -- for readers ----------------------------------------------------------------------------------------------------------


def as_text(plan: Plan) -> str:
    """Return the plan as tables and sentences."""
    parts = [
        _head(plan),
        _rendered(_runs(plan)),
        _rendered(_phases(plan)),
        _memory(plan),
        _rendered(_hosts(plan)),
        _end(plan),
    ]
    return "\n\n".join(parts)


def _head(plan: Plan) -> str:
    where, known = plan.allocation, {arm.work.prices.known() for arm in plan.arms}
    slurm = f"slurm={plan.asked.slurm}: " if plan.asked.slurm else ""
    nodes = f", on {where.nodes} nodes" if where.nodes > 1 else ""
    lines = [
        f"plan: {len(plan.runs)} run{'s' * (len(plan.runs) > 1)}, nothing is started",
        f"{slurm}{where.ranks} x {where.device.name} a run{nodes} ({where.why}); seconds are {' or '.join(sorted(known))}",
    ]
    return "\n".join(lines)


def _runs(plan: Plan) -> Table:
    unit, ranks = plan.allocation.billed, plan.allocation.ranks
    table = _table("run", "iterations", "evaluations", "forwards", "backwards", "decoded, scored", "PFLOP")
    for name in (f"{unit}-h training", f"{unit}-h evaluation", f"{unit}-h", "wall", "starts"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in plan.runs:
        numbers = [run.iterations, run.evaluations, _spread(run.forwards, run.forwards_spread), _short(run.backwards)]
        hours = [_hours(run.training_hours), _hours(run.evaluation_hours), _hours(run.hours)]
        cells = [*numbers, _short(run.counts.videos), _short(run.pflop_all), *hours]
        table.add_row(run.run, *map(str, [*cells, wall(run.wall_hours(ranks)), run.starts]))
    return table


def _phases(plan: Plan) -> Table:
    names = ("rollout", "decode", "reward", "update")
    table = _table("seconds of one iteration on one rank", *names, "in all", "of one evaluation", "unit prices")
    ranks = plan.allocation.ranks
    for arm in plan.arms:
        run = arm.runs[0]
        each = [_short(run.seconds[name] / ranks) for name in names]
        table.add_row(arm.name, *each, _short(run.iteration_wall), _short(run.evaluation_wall), arm.work.prices.known())
    return table


def _memory(plan: Plan) -> str:
    """Return the terms of a device's memory by phase, in GB, of the arm that needs the most; the JSON has all arms'."""
    largest = max(plan.arms, key=lambda arm: peak(arm.needs.memory)[1])
    return _rendered(_memory_of(largest))


def _memory_of(arm: ArmPlan) -> Table:
    phases = arm.needs.memory
    missing = "" if arm.model.wan else " (activations of a model of your own are not known)"
    terms = dict.fromkeys(name for phase in phases.values() for name in phase)
    table = _table(f"memory of a rank's device, GB: {arm.name}{missing}", *phases)
    for name in terms:
        if any(phase.get(name, 0.0) >= SHOWN for phase in phases.values()):
            table.add_row(name, *(_gigabytes(phase.get(name, 0.0)) for phase in phases.values()))
    table.add_row("in all", *(_gigabytes(sum(phase.values())) for phase in phases.values()), style="bold")
    return table


def _hosts(plan: Plan) -> Table:
    names = ("host memory of a node", "a checkpoint", "checkpoints on disk", "save in an iteration", "texts' cache")
    table = _table("GB", *names, "seconds to save", "asked before", "servers needed, given")
    for arm in plan.arms:
        needs, servers, grace = arm.needs, arm.work.scoring.servers, plan.allocation.grace_seconds
        sizes = (sum(needs.host.values()), needs.checkpoint, needs.checkpoints, needs.mid_iteration, needs.embeddings)
        seconds = (_short(needs.saving_seconds), "" if grace is None else f"{grace:g}")
        table.add_row(arm.name, *map(_gigabytes, sizes), *seconds, f"{arm.servers}, {servers}" if servers else "")
    return table


def _end(plan: Plan) -> str:
    sums, unit = totals(plan), plan.allocation.billed
    lines = [
        f"in all: {_hours(sums['hours'])} {unit}-hours, {sums['evaluation_share']:.0%} of them evaluation; "
        f"{_short(sums['forwards'])} forwards and {_short(sums['pflop'])} PFLOP with evaluations; the longest run takes "
        f"{wall(sums['longest_wall_hours'])}"
    ]
    if sums["money"] is not None:
        lines.append(f"at {plan.price:g} a {unit}-hour: {sums['money']:,.2f}")
    return "\n".join([*lines, *(f"note: {line}" for line in plan.notes)])


def wall(hours: float) -> str:
    """Format a time in the largest unit of which there are two or more.

    >>> wall(54.2), wall(3.0), wall(0.2), wall(0.005)
    ('2.3 days', '3 h', '12 min', '18 s')
    """
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 2:
        return f"{hours:.3g} h"
    return f"{60 * hours:.3g} min" if hours >= 1 / 30 else f"{3600 * hours:.3g} s"


def _spread(number: float, deviation: float) -> str:
    """Format an expectation with its standard deviation; what is certain without."""
    return f"{_short(number)} ± {_short(deviation)}" if deviation else _short(number)


def _gigabytes(size: float) -> str:
    """Format bytes in GB, 1e9; '' for none."""
    return f"{size / 1e9:.3g}" if size else ""


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _short(number: float) -> str:
    """Format a number with three digits or, from 1000 on, as a whole one."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _table(first: str, *names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _rendered(table: Table) -> str:
    """Render a table as plain text, as wide as it needs to be."""
    stream = io.StringIO()
    width = None if sys.stdout.isatty() else WIDE
    Console(file=stream, width=width, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
