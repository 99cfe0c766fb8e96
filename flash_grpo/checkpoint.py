"""Checkpoints: written aside, then renamed, so that a directory with a number for a name is complete."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

FOLDER, STATE = "checkpoints", "state.pt"


def save(run_dir: Path, iteration: int, state: dict[str, Any], keep: int) -> Path:
    """Writes the state, then forgets all but the newest `keep`. A full disk leaves the older ones as they were."""
    folder = run_dir / FOLDER
    final, aside = folder / f"{iteration:06d}", folder / f".{iteration:06d}"
    for left in folder.glob(".*"):  # by a process that was killed
        shutil.rmtree(left)
    aside.mkdir(parents=True)
    try:
        with open(aside / STATE, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError):  # torch reports a full disk as RuntimeError
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():  # saved before its evaluation, now after it
        os.replace(aside / STATE, final / STATE)
        aside.rmdir()
    else:
        aside.rename(final)
    for old in complete(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def complete(run_dir: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(path for path in (run_dir / FOLDER).glob("[0-9]*") if (path / STATE).is_file())


def newest(run_dir: Path) -> dict[str, Any] | None:
    """The newest complete checkpoint's state, on the CPU, or None."""
    found = complete(run_dir)
    return load(run_dir, int(found[-1].name)) if found else None


def load(run_dir: Path, iteration: int) -> dict[str, Any]:
    """That iteration's state, on the CPU."""
    return torch.load(run_dir / FOLDER / f"{iteration:06d}" / STATE, map_location="cpu", weights_only=True)
