"""Show, watch, cancel or resubmit the runs of a study on Slurm. Works without the launcher that submitted the sweep.

    python -m flash_grpo.jobs runs/ablation                      state of each run, its cost, why it waits or failed
    python -m flash_grpo.jobs runs/ablation --watch              the same, live, until nothing waits or runs
    python -m flash_grpo.jobs runs/ablation --logs flash-seed0   the logs of the run's ranks; with --follow as they grow
    python -m flash_grpo.jobs runs/ablation --cancel             end all runs, or those named: each saves first
    python -m flash_grpo.jobs runs/ablation --resubmit failed    submit the failed runs again, or those named

States:  waiting, requeued (waits for another start), starting (imports), running, preempted (saves), ending,
         lingering (the run has ended, its job has not: --cancel it);
         complete, failed, cancelled, interrupted (saved and left); without Slurm also unfinished, unknown.
Columns: evaluation, training: the last rewards. device-h: hours of rollout + reward + update, times devices.
         billed: hours that Slurm charges, times devices, over all starts; useful: the part of them that the run's result
         took, evaluation included. The bill is written to a run's run.json once no job of the run waits or runs.

A resubmitted run goes on from its newest checkpoint, with the code and configuration of its first submission. To change
either, give the sweep's command again. What is submitted again must lie in the study's .submitit and be writable by nobody
but you. Exit codes: 0; 1 if --watch ends with a failed run; 2 for bad input.
"""

import argparse
import difflib
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from rich.live import Live

from flash_grpo.arguments import Arguments
from flash_grpo.cluster import logs, slurm
from flash_grpo.cluster.cancel import CancelError, cancel
from flash_grpo.cluster.look import Look, look
from flash_grpo.cluster.run_state import ALIVE, RunState
from flash_grpo.cluster.study_lock import LockedError
from flash_grpo.cluster.table import console, table_of
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.submissions import FOLDER, JOBS, SubmittedRun

AGAIN = ("failed", "cancelled", "interrupted")
ASK_SLURM_S = 5.0


class InputError(ValueError):
    """Bad input, described in one line."""


def watch(study: Path, interval: float) -> bool:
    """Show the table, every `interval` seconds anew, until nothing waits or runs. Return True if no run has failed.

    If Slurm's controller does not answer, the table says so and the controller is asked again.
    """
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            seen = look(study)
            live.update(table_of(seen.runs, seen.notice), refresh=True)
            if not seen.unanswered and not any(run.state in ALIVE for run in seen.runs):
                return not any(run.state == "failed" for run in seen.runs)
            time.sleep(interval)


# -- what can be done to runs ------------------------------------------------------------------------------------------


def resubmit(study: Path, runs: list[RunState], names: list[str]) -> list[str]:
    """Submit runs again exactly as they were submitted; return a line about each. The study's lock must be held.

    names: of runs, or states of AGAIN.
    """
    from flash_grpo.cluster import ownership, submission

    chosen = chosen_by([name for name in names if name not in AGAIN], runs)
    chosen += [run for run in runs if run.job and run.state in names and run not in chosen]
    if not chosen:
        return [f"no run is {' or '.join(names)}"]
    jobs = [_resubmittable(run) for run in chosen]
    try:
        added = submission.resubmit(study / FOLDER, jobs)
    except submission.RefusedError as error:
        raise InputError(f"Slurm refuses this job: {error}") from error
    except slurm.NoSlurmError as error:
        raise InputError(f"Slurm could not be asked ({error})") from error
    except ownership.NotOursError as error:
        raise InputError(str(error)) from error
    return [f"submitted {job.run} again as job {job.job_id}" for job in added]


def _resubmittable(run: RunState) -> SubmittedRun:
    """Return the run's newest job that can be submitted again. InputError if it must not or cannot be submitted again."""
    if run.state in ALIVE:
        first = "wait for its end" if run.state == "ending" else "--cancel it"
        raise InputError(f"{run.run} is {run.state}: {first} first")
    if run.state == "complete":
        early = run.why.startswith("stopped by")
        how = f"{run.why}; to go on without that guard, or" if early else "to go on"
        raise InputError(f"{run.run} is complete; {how} with a larger budget, give the sweep's command again")
    again = [job for job in run.jobs if job.point]
    if not again:
        raise InputError(f"{run.run} was submitted by an earlier version: give the sweep's command again")
    return again[-1]


def chosen_by(names: list[str], runs: list[RunState]) -> list[RunState]:
    """Return the submitted runs of these names, each once. InputError for a name that no run has."""
    submitted = {run.run: run for run in runs if run.job}
    for name in names:
        if name not in submitted:
            near = difflib.get_close_matches(name, submitted, n=3, cutoff=0.4) or list(submitted)[:3]
            raise InputError(f"{name}: no such run was submitted from this study; there are {', '.join(near)}")
    return [submitted[name] for name in dict.fromkeys(names)]


def print_logs(study: Path, run: RunState, follow: bool) -> None:
    """Print the logs of the run's newest job; with `follow` until the run is over. InputError if there are none."""
    assert run.job, "only submitted runs can be chosen"
    paths = logs.log_files(run.job)
    print(f"{run.run}, job {run.job.job_id}, {run.state}: {paths[0].parent}", file=sys.stderr)
    if not follow and not any(path.exists() for path in paths):
        raise InputError(f"{run.run} has no log yet: it is {run.state}")
    at_once = not follow or run.state not in ALIVE
    logs.print_logs(paths, (lambda: True) if at_once else _end_of(study, run.run))


def _end_of(study: Path, name: str) -> Callable[[], bool]:
    """Return a function that returns True if the run is over; it asks Slurm every ASK_SLURM_S seconds."""
    last_asked = time.monotonic()

    def is_over() -> bool:
        nonlocal last_asked
        if time.monotonic() - last_asked <= ASK_SLURM_S:
            return False
        last_asked = time.monotonic()
        seen = look(study)
        return not seen.unanswered and all(run.state not in ALIVE for run in seen.runs if run.run == name)

    return is_over


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Bad input ends the program with one line and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        _do(args)
    except (InputError, DamagedFileError, CancelError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="python -m flash_grpo.jobs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="the directory that holds a sweep's runs: runs/ablation")
    parser.add_argument(
        "--interval",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="seconds between two tables of --watch; default: 10",
    )
    parser.add_argument("--follow", action="store_true", help="with --logs: go on until the run is over")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--watch", action="store_true", help="show the table, live, until nothing waits or runs")
    action.add_argument("--logs", metavar="RUN", help="print the logs of the run's newest job")
    action.add_argument("--cancel", nargs="*", metavar="RUN", help="end these runs, or all that wait or run")
    action.add_argument("--resubmit", nargs="+", metavar="RUN", help=f"names of runs, or {', '.join(AGAIN)}")
    return parser


def _do(args: argparse.Namespace) -> None:
    if not args.study.is_dir():
        raise InputError(f"{args.study}: no such directory; expected a study, as in runs/ablation")
    if args.follow and not args.logs:
        raise InputError("--follow: goes with --logs RUN")
    if args.interval <= 0:
        raise InputError(f"--interval {args.interval}: must be above 0 seconds")
    with _locked(args.study) if args.resubmit else nullcontext():  # what is seen here must still hold at submission
        _answer(args, _seen(args))


def _seen(args: argparse.Namespace) -> Look:
    """Look at the study. InputError if it has nothing that the options are about."""
    seen = look(args.study)
    if not seen.runs:
        raise InputError(f"{args.study}: no run was submitted from it, and it holds no runs; expected a study")
    wants_slurm = args.logs or args.cancel is not None or args.resubmit
    if wants_slurm and not any(run.job for run in seen.runs):
        raise InputError(f"{args.study}: it ran without Slurm; this option needs runs that were submitted to Slurm")
    if seen.unanswered and (args.resubmit or (not shutil.which("squeue") and (args.watch or args.cancel is not None))):
        raise InputError(seen.unanswered)
    return seen


def _locked(study: Path) -> AbstractContextManager[object]:
    """Take the lock of a study from which runs were submitted. InputError if that is impossible now."""
    from flash_grpo.cluster import orphans

    try:
        return closing(orphans.lock_to_submit(study)) if (study / FOLDER / JOBS).exists() else nullcontext()
    except LockedError as error:
        raise InputError(str(error)) from error
    except slurm.NoSlurmError as error:
        raise InputError(f"Slurm could not be asked ({error})") from error


def _answer(args: argparse.Namespace, seen: Look) -> None:
    if args.logs:
        print_logs(args.study, *chosen_by([args.logs], seen.runs), args.follow)
    elif args.cancel is not None:
        chosen = chosen_by(args.cancel, seen.runs) if args.cancel else None
        print(*cancel(seen.runs, chosen, slurm_answers=not seen.unanswered), sep="\n")
    elif args.resubmit:
        print(*resubmit(args.study, seen.runs, args.resubmit), sep="\n")
    elif args.watch:
        sys.exit(0 if watch(args.study, args.interval) else 1)
    else:
        console().print(table_of(seen.runs, seen.notice))


if __name__ == "__main__":
    main()
