"""Save and load checkpoints.

A checkpoint is written under another name and then renamed, so that a directory whose name begins with a number is complete.
`000120` was saved after iteration 120. `000120+001` was saved in the middle of the following iteration by a run that was
asked to stop; it also holds the results that each rank had by then.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flash_grpo.algorithm.denoise import Denoising
from flash_grpo.algorithm.solvers import History
from flash_grpo.algorithm.types import LossTerms, PromptBatch, Rollouts, Scores, Trained, Transitions
from flash_grpo.training.evaluated import EvaluatedPart
from flash_grpo.training.ranks import Ranks

FOLDER, STATE, ASIDE = "checkpoints", "state.pt", ".saving"
NOUNS: list[Any] = [PromptBatch, Rollouts, Transitions, Scores, LossTerms, Trained, Denoising, History, EvaluatedPart]


def save(run_dir: Path, iteration: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state as a checkpoint, then delete all but the newest `keep`. On a full disk the older ones stay."""
    aside = _begin(run_dir)
    _write(aside, STATE, state)
    return _finish(run_dir, f"{iteration:06d}", keep)


def save_mid_iteration(
    run_dir: Path, iteration: int, state: Callable[[], dict[str, Any]], mine: dict[str, Any], keep: int, ranks: Ranks
) -> None:
    """Save in the middle of an iteration. Each rank writes its partial results, rank 0 also the shared state.

    The checkpoint becomes visible, by one rename, only when all have written.
    """
    if ranks.is_main:
        _begin(run_dir)
    ranks.barrier()
    _write(run_dir / FOLDER / ASIDE, _of_rank(ranks.rank), mine)
    ranks.barrier()
    if ranks.is_main:
        _write(run_dir / FOLDER / ASIDE, STATE, state())
        earlier = [int(path.name[7:]) for path in complete(run_dir) if path.name.startswith(f"{iteration:06d}+")]
        _finish(run_dir, f"{iteration:06d}+{max(earlier, default=0) + 1:03d}", keep)
    ranks.barrier()


def _begin(run_dir: Path) -> Path:
    aside = run_dir / FOLDER / ASIDE
    if aside.exists():  # left by a process that was killed
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


def _write(aside: Path, name: str, state: dict[str, Any]) -> None:
    try:
        with open(aside / name, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError):  # torch reports a full disk as RuntimeError
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _finish(run_dir: Path, name: str, keep: int) -> Path:
    aside, final = run_dir / FOLDER / ASIDE, run_dir / FOLDER / name
    if final.exists():  # it was saved before the evaluation of this iteration, and now after it
        os.replace(aside / STATE, final / STATE)
        aside.rmdir()
    else:
        aside.rename(final)
    kept = {final, *after_iterations(run_dir)[-keep:]}
    for old in complete(run_dir):
        if old not in kept:
            shutil.rmtree(old)
    return final


def complete(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in (run_dir / FOLDER).glob("[0-9]*") if (path / STATE).is_file())


def after_iterations(run_dir: Path) -> list[Path]:
    """Return the checkpoints that were saved between two iterations, oldest first."""
    return [path for path in complete(run_dir) if path.name.isdigit()]


def newest_name(run_dir: Path) -> str | None:
    """Return the name of the newest complete checkpoint; None if there is none."""
    return next((path.name for path in reversed(complete(run_dir))), None)


def newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest complete checkpoint's state, on the CPU; None if there is none."""
    name = newest_name(run_dir)
    return load(run_dir, name) if name else None


def of_this_rank(run_dir: Path, name: str, ranks: Ranks) -> dict[str, Any]:
    """Return this rank's partial results from a checkpoint that was saved in the middle of an iteration, on its device."""
    return _read(run_dir / FOLDER / name / _of_rank(ranks.rank), ranks.device)


def load(run_dir: Path, name: str) -> dict[str, Any]:
    """Load the state of the checkpoint of this name, on the CPU."""
    return _read(run_dir / FOLDER / name / STATE)


def _of_rank(rank: int) -> str:
    return f"rank{rank:03d}.pt"


def _read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file of a checkpoint. Tensors that were on an accelerator when they were saved are moved to `device`."""

    def place(storage: Any, location: str) -> Any:
        return storage if location == "cpu" or str(device) == "cpu" else storage.to(device=device)

    with torch.serialization.safe_globals(NOUNS):
        return torch.load(path, map_location=place, weights_only=True)
