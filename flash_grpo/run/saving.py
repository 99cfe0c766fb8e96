"""Save a run and resume it from its checkpoints, also in the middle of an iteration or of an evaluation."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flash_grpo.run import checkpoint
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.progress import Place
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.trainer import Trainer

log = logging.getLogger(__name__)


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

        ConfigError if a run that was stopped in the middle of an iteration cannot go on with these ranks or batch sizes.
        """
        trainer = self.trainer
        name = trainer.ranks.from_main(checkpoint.newest_name(self.path))
        if name is None:
            self.directory.begin(0, trainer.journal.pieces, 0)
            return Place()
        state = checkpoint.load(self.path, name)
        trainer.restore(state)
        progress = state["progress"]
        place = Place(**progress["place"])
        if progress["inside_on_ranks"]:
            self._resume_inside(name, place, progress["inside_on_ranks"], progress["batches"])
        log.info("continuing %s %s", self.path, place.described(bool(trainer.journal.done)))
        self.directory.begin(place.iteration, trainer.journal.pieces, progress["records_length"])
        return place

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

    def _resume_inside(self, name: str, place: Place, world_size: int, batches: dict[str, int]) -> None:
        trainer = self.trainer
        saved = self.path / checkpoint.FOLDER / name
        if batches != self._batches(place):
            raise ConfigError(
                f"{self.path} was stopped in the middle of micro-batches of other sizes: go on with "
                f"{' '.join(f'{key}={size}' for key, size in batches.items())}, or delete {saved} to go back to iteration "
                f"{place.iteration}"
            )
        if world_size != trainer.ranks.world_size:
            raise ConfigError(
                f"{self.path} was stopped in the middle of an iteration by {world_size} ranks, and only as many can go on "
                f"there; these are {trainer.ranks.world_size}. Or delete {saved} to go back to iteration {place.iteration}"
            )
        trainer.resume_unfinished(checkpoint.of_this_rank(self.path, name, trainer.ranks))
