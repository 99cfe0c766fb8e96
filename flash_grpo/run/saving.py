"""Save a run and resume it from its checkpoints, also in the middle of an iteration or of an evaluation."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import last_recorded, read_records
from flash_grpo.run import checkpoint
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.progress import Place
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint as read. unfinished: what this rank had by then of the iteration; None if it was between two."""

    name: str
    state: dict[str, Any]
    unfinished: dict[str, Any] | None


@dataclass(kw_only=True)
class Saver:
    """Saves and resumes one run. keep: how many of the newest checkpoints stay. evaluation_batch: see `Evaluation.batch`."""

    directory: RunDirectory
    trainer: Trainer
    keep: int
    evaluation_batch: int

    @property
    def path(self) -> Path:
        return self.directory.path

    def save(self, place: Place) -> None:
        """Save between two iterations."""
        if self.trainer.ranks.is_main:
            checkpoint.save(self.path, place.iteration, self._state(place, inside=False), self.keep)
        self.trainer.ranks.barrier()

    def leave(self, place: Place) -> None:
        """Save in the middle of an iteration or evaluation, including the results that each rank has so far."""
        trainer = self.trainer
        if not trainer.ranks.any(bool(trainer.journal.done)):
            self.save(place)
            return
        checkpoint.save_mid_iteration(
            self.path,
            place.iteration,
            lambda: self._state(place, inside=True),
            trainer.unfinished(),
            self.keep,
            trainer.ranks,
        )

    def resume(self) -> Place:
        """Restore the newest checkpoint, note this start of the run, and return how far the run has come.

        A checkpoint of which a file is damaged, or whose records are, is set aside and an older one restored. ConfigError if
        none is left, or if a run that was stopped in the middle of an iteration cannot go on with these ranks or batch sizes.
        """
        trainer = self.trainer
        found, refused = newest_usable(self.path, trainer.ranks)
        if found is None:
            self._refuse_to_begin_again(refused)
            self.directory.begin(0, trainer.journal.pieces, 0)
            return Place()
        self._set_aside(refused, found)
        progress = found.state["progress"]
        place = Place(**progress["place"])
        if progress["inside_on_ranks"]:
            self._check_inside(found.name, place, progress["inside_on_ranks"], progress["batches"])
        trainer.restore(found.state)
        if found.unfinished is not None:
            trainer.resume_unfinished(found.unfinished)
        log.info("continuing %s %s", self.path, place.described(bool(trainer.journal.done)))
        self.directory.begin(place.iteration, trainer.journal.pieces, progress["records_length"])
        return place

    def _set_aside(self, refused: dict[str, str], found: Found) -> None:
        """Take the checkpoints out of the way, so that they are not used later beside records of another length."""
        for name, problem in refused.items():
            if self.trainer.ranks.is_main:
                there = checkpoint.set_aside(self.path, name)
                log.warning("%s. It is now %s; the run goes on from %s", problem, there.name, found.name)
                self.directory.set_aside.append(f"{name}: {problem}")

    def _refuse_to_begin_again(self, refused: dict[str, str]) -> None:
        """Raise ConfigError if the run has got somewhere and has no checkpoint to go on from."""
        reached = self.trainer.ranks.from_main(last_recorded(self.path))
        if not refused and not reached:
            return
        why = " | ".join(refused.values()) or f"its records reach iteration {reached}, and it has no checkpoint"
        raise ConfigError(
            f"{self.path} has no checkpoint to go on from: {why}. Put one back from a copy, or delete {self.path} to begin "
            "again"
        )

    def _state(self, place: Place, inside: bool) -> dict[str, Any]:
        """Return all state that the rest of the run depends on, and the present length of the records."""
        return {
            **self.trainer.state(),
            "progress": {
                "iteration": place.iteration,
                "place": asdict(place),
                "batches": self._batches(place),
                "inside_on_ranks": self.trainer.ranks.world_size if inside else 0,
                "records_length": self.directory.written,
            },
        }

    def _batches(self, place: Place) -> dict[str, int]:
        """Return the batch sizes that divide the present evaluation or iteration into resumable results."""
        if place.evaluating:
            return {"evaluation.sampler.batch": self.evaluation_batch}
        return {"rollout.batch": self.trainer.rollouts.at_once, "training.batch": self.trainer.updater.at_once}

    def _check_inside(self, name: str, place: Place, world_size: int, batches: dict[str, int]) -> None:
        """Raise ConfigError unless these ranks and batch sizes are those in the middle of which the run was stopped."""
        ranks = self.trainer.ranks
        saved = self.path / checkpoint.FOLDER / name
        if batches != self._batches(place):
            raise ConfigError(
                f"{self.path} was stopped in the middle of micro-batches of other sizes: go on with "
                f"{' '.join(f'{key}={size}' for key, size in batches.items())}, or delete {saved} to go back to iteration "
                f"{place.iteration}"
            )
        if world_size != ranks.world_size:
            raise ConfigError(
                f"{self.path} was stopped in the middle of an iteration by {world_size} ranks, and only as many can go on "
                f"there; these are {ranks.world_size}. Or delete {saved} to go back to iteration {place.iteration}"
            )


def newest_usable(run_dir: Path, ranks: Ranks) -> tuple[Found | None, dict[str, str]]:
    """Read the newest checkpoint that every rank can read whole; return also why each newer one cannot be used."""
    refused: dict[str, str] = {}
    for name in ranks.from_main(checkpoint.names(run_dir)):
        found, problem = None, ""
        try:
            found = _read(run_dir, name, ranks)
        except DamagedFileError as error:
            problem = str(error)
        worst = int(ranks.max(torch.tensor(ranks.rank if problem else -1)))
        if worst < 0:
            return found, refused
        refused[name] = ranks.from_rank(worst, problem)
    return None, refused


def _read(run_dir: Path, name: str, ranks: Ranks) -> Found:
    """Read all that this rank needs of a checkpoint. DamagedFileError if a file, or the records up to it, is damaged."""
    state = checkpoint.load(run_dir, name)
    if ranks.is_main:
        list(read_records(run_dir, state["progress"]["records_length"]))
    inside = state["progress"]["inside_on_ranks"] == ranks.world_size
    return Found(name, state, checkpoint.of_this_rank(run_dir, name, ranks) if inside else None)
