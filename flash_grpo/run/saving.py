"""Save a run and go on from what is saved, also from the middle of an iteration or of an evaluation."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flash_grpo.run import checkpoint
from flash_grpo.run.build import ConfigError
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.progress import Place
from flash_grpo.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Saver:
    """Keeps a run's checkpoints. keep: how many newest ones stay. evaluation_batch: see `Evaluation.batch`."""

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
        """Save also what each rank has done of the iteration, or the evaluation, under way."""
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
        """Restore the newest checkpoint and begin a start of the run; return where it is. ConfigError where it cannot go on."""
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
        """Return everything that what comes next depends on, and the records' length at this moment."""
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
        """Return the sizes that cut the evaluation, or the iteration, under way into pieces."""
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
