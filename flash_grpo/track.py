"""Send the records of a study's runs to a tracker, as they grow or afterwards. The runs know nothing of it.

    python -m flash_grpo.track runs/mine --to tensorboard   then: tensorboard --logdir runs/mine/tensorboard
    python -m flash_grpo.track runs/mine --to wandb         without a key offline, then: wandb sync runs/mine/wandb/offline-*
    python -m flash_grpo.track runs/mine --to trackio       then: trackio show --project mine
    python -m flash_grpo.track runs/mine --to mlflow        to MLFLOW_TRACKING_URI, else to runs/mine/mlflow/mlflow.db
    python train.py -m sweeps=ablation track=tensorboard    the same beside a sweep's launcher, and as long

Every number of every record is sent once, under a name of its own; what is null is left out. Runs are grouped by method and
SDE. The command may be ended and given again at any time, and runs may be killed and continued meanwhile: nothing is missing
and nothing is there twice. It reads the study and writes only into --store, and where the tracker itself keeps its files.

It ends when no run waits or runs and none has written for --patience seconds. Runs on another machine without Slurm cannot be
asked whether they go on: give more patience than their iterations take.
Exit codes: 0; 1 if the tracker fails; 2 for bad input, also if the tracker's package is missing; 130 for Ctrl-C.
"""

import argparse
import fcntl
import logging
import select
import sys
import time
import traceback
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO

from flash_grpo.arguments import Arguments, refuse
from flash_grpo.cluster.alive import alive_runs
from flash_grpo.records.files import MANIFEST, RECORDS
from flash_grpo.records.locking import locked
from flash_grpo.run.settings import TRACKERS
from flash_grpo.tracking.follow import Follower

UNLOCKED = "nothing keeps two followers from writing the same"


def follow(study: Path, follower: Follower, interval: float, patience: float, beside: IO[str] | None = None) -> None:
    """Look every `interval` seconds until no run waits or runs, and none has written for `patience` seconds.

    beside: end when this stream does, instead.
    """
    began = time.time()
    while True:
        last = _ended(beside, interval=0) if beside else False
        alive = alive_runs(study)
        follower.look(alive)
        if last or (not beside and not alive and silent_seconds(study, began) >= patience):
            break
        if beside:
            _ended(beside, interval)
        else:
            time.sleep(interval)
    follower.close()


def silent_seconds(study: Path, since: float) -> float:
    """Return the seconds since a run of the study has written its records or run.json; since `since` if there is no run yet."""
    files = [path.with_name(name) for path in study.glob(f"*/{MANIFEST}") for name in (MANIFEST, RECORDS)]
    return time.time() - max((file.stat().st_mtime for file in files if file.exists()), default=since)


def _ended(stream: IO[str], interval: float) -> bool:
    """Wait for the end of a stream on which nothing is written, for at most `interval` seconds; return True if it has ended."""
    return bool(select.select([stream], [], [], interval)[0])


def adapter(tracker: str) -> ModuleType:
    """Return the module of a tracker. Exit with code 2 if its package is missing."""
    try:
        return import_module(f"flash_grpo.tracking.{tracker}")
    except ModuleNotFoundError as error:
        refuse(f"--to {tracker}: {error.name} is not installed; it comes with the extra: pip install -e '.[{tracker}]'")


def _locked(folder: Path, tracker: str) -> IO[str]:
    """Return a file that stays open, and locked, while this process follows. Exit with code 2 if another one does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / f".track-{tracker}", "a")  # noqa: SIM115
    except OSError as error:
        refuse(f"{folder}: {error.strerror}; name a folder of your own, as in --store {Path.home() / 'tracked'}")
    if not locked(file, fcntl.flock, UNLOCKED):
        refuse(f"{folder}: another process follows it to {tracker} already; wait for it, or end it")
    return file


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Bad input ends the program with one line and exit code 2."""
    logging.basicConfig(format="%(message)s", handlers=[_once()])
    args = _parser().parse_args(argv)
    if not args.study.is_dir():
        refuse(f"{args.study}: no such directory; expected a study, as in runs/ablation")
    if (args.study / MANIFEST).exists():
        refuse(f"{args.study}: is a run; expected its study, {args.study.resolve().parent}")
    for name, least in (("interval", 0.1), ("patience", 0.0)):
        if not least <= getattr(args, name) < float("inf"):
            refuse(f"--{name} {getattr(args, name)}: must be a number of seconds, at least {least}")
    module, store = adapter(args.to), (args.store or args.study) / args.to
    with _locked(args.store or args.study, args.to):
        store.mkdir(exist_ok=True)
        print(f"following {args.study}; {module.LOOK.format(store=store, study=args.study.resolve().name)}", flush=True)
        follower = Follower(args.study, partial(module.Tracker, store=store), logging.warning)
        try:
            follow(args.study, follower, args.interval, args.patience, sys.stdin if args.beside else None)
        except KeyboardInterrupt:
            follower.close()
            sys.exit(130)
        except Exception as error:  # whatever a tracker raises
            traceback.print_exc()
            words = " ".join(str(error).split()) or "no reason given"
            sys.exit(f"stopped: {args.to}: {type(error).__name__}: {words}; the same command goes on where it stopped")


def _once() -> logging.Handler:
    """Return a handler that prints each line once: what is damaged is met again at every look."""
    handler, said = logging.StreamHandler(), set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        before = len(said)
        said.add(record.getMessage())
        return len(said) > before

    handler.addFilter(is_new)
    return handler


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="python -m flash_grpo.track", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="the directory that holds a sweep's runs: runs/ablation")
    parser.add_argument("--to", required=True, choices=TRACKERS, help="the tracker")
    parser.add_argument("--store", type=Path, help="the folder in which the tracker has a folder; default: STUDY")
    parser.add_argument(
        "--interval", type=float, default=10.0, metavar="SECONDS", help="seconds between two looks; default: 10"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="how long nothing may be written; default: 60"
    )
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)  # ends when standard input does
    return parser


if __name__ == "__main__":
    main()
