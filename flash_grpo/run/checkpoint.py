"""Save and load checkpoints.

A checkpoint is written under another name and then renamed, so that a directory whose name begins with a number is complete.
`000120` was saved after iteration 120. `000120+001` was saved in the middle of the following iteration by a run that was
asked to stop; it also holds the results that each rank had by then. SHA256SUMS has the checksum of every file, as `sha256sum
-c` reads it: no file is loaded whose checksum is missing or another.
"""

import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flash_grpo.algorithm.denoise import Denoising
from flash_grpo.algorithm.solvers import History
from flash_grpo.algorithm.types import LossTerms, PromptBatch, Rollouts, Scores, Trained, Transitions
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import RESTORE, write_atomically
from flash_grpo.records.full_disk import naming_full_disk
from flash_grpo.training.evaluated import EvaluatedPart
from flash_grpo.training.ranks import Ranks

FOLDER, STATE, SUMS, ASIDE, UNUSABLE = "checkpoints", "state.pt", "SHA256SUMS", ".saving", "unusable-"
NAME = re.compile(r"\d{6,}(\+\d{3,})?")
NOUNS: list[Any] = [PromptBatch, Rollouts, Transitions, Scores, LossTerms, Trained, Denoising, History, EvaluatedPart]


def save(run_dir: Path, iteration: int, state: dict[str, Any], keep: int, best: int | None = None) -> Path:
    """Write the state as a checkpoint, then delete all but the newest `keep` and that of iteration `best`.

    On a full disk the older ones stay.
    """
    aside = _begin(run_dir)
    return _finish(run_dir, f"{iteration:06d}", _write(aside, STATE, state), keep, best)


def save_mid_iteration(
    run_dir: Path,
    iteration: int,
    state: Callable[[], dict[str, Any]],
    mine: dict[str, Any],
    keep: int,
    ranks: Ranks,
    best: int | None = None,
) -> None:
    """Save in the middle of an iteration. Each rank writes its partial results, rank 0 also the shared state.

    The checkpoint becomes visible, by one rename, only when all have written.
    """
    if ranks.is_main:
        _begin(run_dir)
    ranks.barrier()
    aside = run_dir / FOLDER / ASIDE
    written = _write(aside, _of_rank(ranks.rank), mine)
    sums = "".join(ranks.from_rank(rank, written) for rank in range(ranks.world_size))
    ranks.barrier()
    if ranks.is_main:
        sums += _write(aside, STATE, state())
        earlier = [int(path.name[7:]) for path in complete(run_dir) if path.name.startswith(f"{iteration:06d}+")]
        _finish(run_dir, f"{iteration:06d}+{max(earlier, default=0) + 1:03d}", sums, keep, best)
    ranks.barrier()


def _begin(run_dir: Path) -> Path:
    aside = run_dir / FOLDER / ASIDE
    if aside.exists():  # left by a process that was killed
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    return aside


class _Summing(io.BufferedWriter):
    """A file that computes the SHA-256 of what is written to it, in order. failure: why something could not be written."""

    def __init__(self, path: Path):
        super().__init__(open(path, "wb", buffering=0))  # noqa: SIM115 -- closed with this object
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return super().write(data)
        except OSError as failure:
            self.failure = self.failure or failure
            raise


def _write(aside: Path, name: str, state: dict[str, Any]) -> str:
    """Write one file of a checkpoint and return its line of SHA256SUMS. FullDiskError if there is no space."""
    try:
        with naming_full_disk(aside / name), _Summing(aside / name) as file:
            _save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError):
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return _sum_line(file.sha256.hexdigest(), name)


def _save(state: dict[str, Any], file: _Summing) -> None:
    """Save as torch does, but raise the file's own error: torch tells "enforce fail at inline_container.cc" instead."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if file.failure:
            raise file.failure from error
        raise


def _finish(run_dir: Path, name: str, sums: str, keep: int, best: int | None) -> Path:
    """Give the checkpoint its sums and its name, and delete those that are not kept, or unusable and no newer."""
    aside, final = run_dir / FOLDER / ASIDE, run_dir / FOLDER / name
    if final.exists():  # it was saved before the evaluation of this iteration, and now after it
        write_atomically(final / SUMS, sums + (final / SUMS).read_text())  # whichever state a crash leaves has its sum
        os.replace(aside / STATE, final / STATE)
        write_atomically(final / SUMS, sums)
        aside.rmdir()
    else:
        write_atomically(aside / SUMS, sums)
        aside.rename(final)
    kept = {final, *after_iterations(run_dir)[-keep:]}
    if best is not None:
        kept.add(run_dir / FOLDER / f"{best:06d}")
    for old in [path for older in names(run_dir) if (path := run_dir / FOLDER / older) not in kept]:
        shutil.rmtree(old.rename(aside))  # half deleted it would look like a damaged one
    for path in (run_dir / FOLDER).glob(f"{UNUSABLE}*"):
        if path.name.removeprefix(UNUSABLE) <= name:  # a complete one stands in its place
            shutil.rmtree(path)
    return final


def set_aside(run_dir: Path, name: str) -> Path:
    """Take an unusable checkpoint out of the run's way, under another name, and return its path.

    It is deleted as soon as the run has saved a whole one that is as new.
    """
    there, kept = run_dir / FOLDER / name, run_dir / FOLDER / f"{UNUSABLE}{name}"
    if kept.exists():
        shutil.rmtree(kept)
    return there.rename(kept)


def names(run_dir: Path) -> list[str]:
    """Return the names of all checkpoints, newest first, without looking into them."""
    return sorted((path.name for path in (run_dir / FOLDER).glob("*") if NAME.fullmatch(path.name)), reverse=True)


def complete(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return [path for name in reversed(names(run_dir)) if ((path := run_dir / FOLDER / name) / STATE).is_file()]


def after_iterations(run_dir: Path) -> list[Path]:
    """Return the checkpoints that were saved between two iterations, oldest first."""
    return [path for path in complete(run_dir) if path.name.isdigit()]


def newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest complete checkpoint's state, on the CPU; None if there is none. DamagedFileError as in `load`."""
    there = complete(run_dir)
    return load(run_dir, there[-1].name) if there else None


def of_this_rank(run_dir: Path, name: str, ranks: Ranks) -> dict[str, Any]:
    """Return this rank's partial results from a checkpoint that was saved in the middle of an iteration, on its device.

    DamagedFileError as in `load`.
    """
    return _read(run_dir / FOLDER / name / _of_rank(ranks.rank), ranks.device)


def load(run_dir: Path, name: str) -> dict[str, Any]:
    """Load the state of the checkpoint of this name, on the CPU. DamagedFileError if its checksum is missing or another."""
    return _read(run_dir / FOLDER / name / STATE)


def _of_rank(rank: int) -> str:
    return f"rank{rank:03d}.pt"


def _read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file of a checkpoint. Tensors that were on an accelerator when they were saved are moved to `device`."""

    _verify(path)

    def place(storage: Any, location: str) -> Any:
        return storage if location == "cpu" or str(device) == "cpu" else storage.to(device=device)

    with torch.serialization.safe_globals(NOUNS):
        return torch.load(path, map_location=place, weights_only=True)


def _verify(path: Path) -> None:
    """Raise DamagedFileError unless SHA256SUMS, beside the file, has the file's checksum."""
    sums = path.with_name(SUMS)
    try:
        with open(path, "rb") as file:
            line = _sum_line(hashlib.file_digest(file, "sha256").hexdigest(), path.name)
        if not sums.exists():
            unverified = (
                f"nothing tells whether it is whole; if you trust it: (cd {path.parent} && sha256sum *.pt > {SUMS})"
            )
            raise DamagedFileError(path, f"there is no {SUMS} beside it (written by an earlier version?)", unverified)
        known = sums.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read ({error.strerror})", RESTORE) from error
    if line.encode() not in known:
        raise DamagedFileError(path, f"its checksum is not the one in {SUMS}: it is damaged", RESTORE)


def _sum_line(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"
