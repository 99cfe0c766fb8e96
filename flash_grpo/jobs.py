"""`python -m flash_grpo.jobs STUDY`: the runs of a study on Slurm, one line each. Needs no process of the sweep's.

    python -m flash_grpo.jobs runs/ablation                      where each run stands, what it cost, why it waits or failed
    python -m flash_grpo.jobs runs/ablation --watch              the same, live, until nothing waits or runs
    python -m flash_grpo.jobs runs/ablation --logs flash-seed0   the logs of its ranks; with --follow as they grow
    python -m flash_grpo.jobs runs/ablation --cancel             of these runs, or of all: each saves and ends
    python -m flash_grpo.jobs runs/ablation --resubmit failed    those that failed, or named ones, as they were submitted

States:  waiting, requeued (waits for another start), starting (imports), running, preempted (saves), ending;
         complete, failed, cancelled, interrupted (saved and left); without Slurm also unfinished, unknown.
Columns: evaluation, training: the last rewards. device-h: hours of rollout + reward + update, times devices.
         billed: hours that Slurm charges, times devices, over all starts; useful: the share of it that the result took,
         evaluation included. It goes to `bill` in a run's run.json once no job of the run waits or runs.

A run that --resubmit starts again goes on from its newest checkpoint, with the code and configuration of its first
submission. To change either, give the sweep's command again. Exit codes: 0; 1 where --watch ends with a failed run;
2 bad input.
"""

import argparse
import difflib
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flash_grpo.cluster import run_state, slurm
from flash_grpo.cluster.bill import write_bills
from flash_grpo.cluster.run_state import ALIVE, OVER, Standing

CANCELLABLE = tuple(state for state in ALIVE if state != "ending")
AGAIN = ("failed", "cancelled", "interrupted")
COLOURS = {"running": "green", "complete": "bold green", "failed": "bold red", "cancelled": "yellow"}
NUMBERS = ("iteration", "evaluation", "training", "device-h", "billed", "useful", "restarts", "last record")
FOLLOW_S, ASK_SLURM_S = 0.5, 5.0


class InputError(ValueError):
    """Bad input, told in a line."""


def look(study: Path) -> tuple[list[Standing], str]:
    """Every run's standing, and why Slurm could not be asked, empty if it could. Writes the bills that can be settled."""
    try:
        answer, silent = slurm.ask_of(study), ""
        write_bills(study, answer)
    except slurm.NoSlurmError as error:
        answer, silent = None, f"Slurm could not be asked ({error}): what follows is what the runs wrote themselves"
    return run_state.standings(study, answer), silent


# -- the table ---------------------------------------------------------------------------------------------------------


def shown(runs: list[Standing], silent: str) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for run in runs:
        state = Text(run.state, style=COLOURS.get(run.state, ""))
        table.add_row(Text(run.run), state, *_numbers(run), Text(run.why))
    return Group(*([Text(silent)] if silent else []), table, Text(totals(runs), style="bold"))


def _numbers(run: Standing) -> list[str]:
    return [
        _number(run.iteration, "d"),
        _number(run.evaluation_reward, ".3f"),
        _number(run.training_reward, ".3f"),
        hours(run.device_seconds) if run.iteration is not None else "",
        hours(run.billed_seconds),
        share(run.useful_seconds, run.billed_seconds),
        str(run.restarts),
        age(run.age),
    ]


def totals(runs: list[Standing]) -> str:
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {state}" for state in (*OVER, *ALIVE) if counts[state])
    own = sum(run.device_seconds for run in runs)
    billed = sum(run.billed_seconds for run in runs if run.billed_seconds)
    useful = sum(run.useful_seconds for run in runs if run.billed_seconds)
    told = f"{len(runs)} run{'s' * (len(runs) > 1)}: {states}; {hours(own)} device-hours"
    return told + (f"; {hours(billed)} device-hours billed, {share(useful, billed)} of them useful" if billed else "")


def hours(seconds: float | None) -> str:
    """Three digits; a day or more to the hour."""
    if seconds is None:
        return ""
    return f"{seconds / 3600:.0f}" if seconds >= 86400 else f"{seconds / 3600:.3g}"


def share(useful: float, billed: float | None) -> str:
    return f"{100 * useful / billed:.0f} %" if billed else ""


def age(seconds: float | None) -> str:
    """In the largest unit that gives at least two."""
    if seconds is None:
        return ""
    unit, size = next((pair for pair in (("d", 86400), ("h", 3600), ("min", 60)) if seconds >= 2 * pair[1]), ("s", 1))
    return f"{max(0, seconds) / size:.0f} {unit}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _console() -> Console:
    """As wide as a line where nobody looks: a file, or a pipe to grep."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=10_000)


def watch(study: Path, interval: float) -> bool:
    """Shows the table until nothing waits or runs. Whether no run has failed. A controller that does not answer for a
    while is asked again."""
    with Live(console=_console(), auto_refresh=False) as live:
        while True:
            runs, silent = look(study)
            live.update(shown(runs, silent), refresh=True)
            if not silent and not any(run.state in ALIVE for run in runs):
                return not any(run.state == "failed" for run in runs)
            time.sleep(interval)


# -- what can be done to runs ------------------------------------------------------------------------------------------


def cancel(runs: list[Standing], names: list[str], silent: bool) -> list[str]:
    """scancel of the named runs, or of all; what was done, a line each. silent: Slurm did not say how they stand."""
    cancellable = [
        run for run in runs if run.job and (run.state in CANCELLABLE or (silent and run.state != "complete"))
    ]
    chosen = chosen_by(names, runs) if names else cancellable
    queued = [run for run in chosen if run in cancellable]
    if queued:
        _scancel([run.job["job_id"] for run in queued])
    was = "" if silent else ", which was {state}"
    told = [
        f"cancelled {run.run} (job {run.job['job_id']}){was.format(state=run.state)}{_saves(run)}" for run in queued
    ]
    told += [f"left {run.run} alone: it is {run.state}" for run in chosen if run not in queued]
    return told or ["nothing waits or runs"]


def _saves(run: Standing) -> str:
    return ": it saves and ends" if run.state in ("running", "starting") else ""


def _scancel(jobs: list[str]) -> None:
    try:
        slurm.asked("scancel", *jobs)
    except slurm.NoSlurmError as error:
        raise InputError(str(error)) from error


def resubmit(study: Path, runs: list[Standing], names: list[str]) -> list[str]:
    """What was submitted, once more, of the runs named or in the states named; what was done, a line each."""
    from flash_grpo.cluster import submission

    chosen = chosen_by([name for name in names if name not in AGAIN], runs)
    chosen += [run for run in runs if run.job and run.state in names and run not in chosen]
    if not chosen:
        return [f"no run is {' or '.join(names)}"]
    for run in chosen:
        if run.state in ALIVE:
            first = "its end comes" if run.state == "ending" else "--cancel it"
            raise InputError(f"{run.run} is {run.state}: {first} first")
        if run.state == "complete":
            raise InputError(f"{run.run} is complete; to go on with a larger budget, give the sweep's command again")
        if "point" not in run.job:
            raise InputError(f"{run.run} was submitted by an earlier version: give the sweep's command again")
    try:
        added = submission.resubmit(study / ".submitit", [run.job for run in chosen])
    except submission.RefusedError as error:
        raise InputError(f"Slurm takes no such job: {error}") from error
    return [f"submitted {line['run']} again as job {line['job_id']}" for line in added]


def chosen_by(names: list[str], runs: list[Standing]) -> list[Standing]:
    known = {run.run: run for run in runs if run.job}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:3]
            raise InputError(f"{name}: no such run was submitted from this study; there are {', '.join(near)}")
    return [known[name] for name in dict.fromkeys(names)]


# -- logs --------------------------------------------------------------------------------------------------------------


def print_logs(study: Path, run: Standing, follow: bool) -> None:
    paths, read = run_state.logs(run.job), Counter()
    print(f"{run.run}, job {run.job['job_id']}, {run.state}: {paths[0].parent}", file=sys.stderr)
    if not follow and not any(path.exists() for path in paths):
        raise InputError(f"{run.run} has no log yet: it is {run.state}")
    over, asked = not follow or run.state not in ALIVE, time.monotonic()
    while True:
        for rank, path in enumerate(paths):
            read[rank] += _print_from(path, read[rank], f"{rank}: " if len(paths) > 1 else "")
        if over:
            return
        time.sleep(FOLLOW_S)
        if time.monotonic() - asked > ASK_SLURM_S:
            asked, (runs, silent) = time.monotonic(), look(study)
            over = not silent and all(one.state not in ALIVE for one in runs if one.run == run.run)


def _print_from(path: Path, offset: int, prefix: str) -> int:
    """Prints the whole lines after `offset`; returns their length. Of a progress bar only its last state."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(offset)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").split("\n")[:-1]:
        print(prefix + line.rstrip("\r").rpartition("\r")[2], flush=True)
    return len(whole)


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    try:
        _do(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flash_grpo.jobs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="the directory that holds a sweep's runs: runs/ablation")
    parser.add_argument("--interval", type=float, default=10.0, metavar="SECONDS", help="of --watch; default: 10")
    parser.add_argument("--follow", action="store_true", help="with --logs: go on until the run is over")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--watch", action="store_true", help="the table, live, until nothing waits or runs")
    one.add_argument("--logs", metavar="RUN", help="print the logs of the run's newest job")
    one.add_argument("--cancel", nargs="*", metavar="RUN", help="end these runs, or all that wait or run")
    one.add_argument("--resubmit", nargs="+", metavar="RUN", help=f"a run's name, or {', '.join(AGAIN)}")
    return parser


def _do(args: argparse.Namespace) -> None:
    if not args.study.is_dir():
        raise InputError(f"{args.study}: no such directory; expected a study, as in runs/ablation")
    if args.follow and not args.logs:
        raise InputError("--follow: goes with --logs RUN")
    if args.interval <= 0:
        raise InputError(f"--interval {args.interval}: must be above 0 seconds")
    runs, silent = look(args.study)
    if not runs:
        raise InputError(f"{args.study}: no run was submitted from it, and it holds none; expected a study")
    wants_slurm = args.logs or args.cancel is not None or args.resubmit
    if wants_slurm and not any(run.job for run in runs):
        raise InputError(f"{args.study}: it ran without Slurm; nothing was submitted that this could be done to")
    if silent and (args.resubmit or (not shutil.which("squeue") and (args.watch or args.cancel is not None))):
        raise InputError(silent.partition(":")[0])
    _answer(args, runs, silent)


def _answer(args: argparse.Namespace, runs: list[Standing], silent: str) -> None:
    if args.logs:
        print_logs(args.study, *chosen_by([args.logs], runs), args.follow)
    elif args.cancel is not None:
        print(*cancel(runs, args.cancel, bool(silent)), sep="\n")
    elif args.resubmit:
        print(*resubmit(args.study, runs, args.resubmit), sep="\n")
    elif args.watch:
        sys.exit(0 if watch(args.study, args.interval) else 1)
    else:
        _console().print(shown(runs, silent))


if __name__ == "__main__":
    main()
