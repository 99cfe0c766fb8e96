"""Save a run and resume it from its checkpoints, also in the middle of an iteration or of an evaluation."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flash_grpo.records.files import last_recorded
from flash_grpo.run import checkpoint
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.evaluating import Evaluator
from flash_grpo.run.guard import Guard
from flash_grpo.run.progress import Place
from flash_grpo.run.saved import Found, SavedProgress, newest_usable
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Saver:
    """Saves and resumes one run. keep: how many of the newest checkpoints stay; the guard's best one does too."""

    directory: RunDirectory
    trainer: Trainer
    evaluator: Evaluator
    guard: Guard
    keep: int

    @property
    def path(self) -> Path:
        return self.directory.path

    def save(self, place: Place) -> None:
        """Save between two iterations."""
        if self.trainer.ranks.is_main:
            best = self._named_best()
            checkpoint.save(self.path, place.iteration, self._state(place, inside=False), self.keep, best)
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
            self._named_best() if trainer.ranks.is_main else None,
        )

    def _named_best(self) -> int | None:
        """Return the iteration of the checkpoint to keep as the best, None for none, after writing it to run.json.

        An evaluated iteration has a checkpoint: each evaluation begins with one.
        """
        best = self.guard.best({int(path.name) for path in checkpoint.after_iterations(self.path)})
        self.directory.name_best(best)
        return None if best is None else best.iteration

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
        progress, place = found.progress, found.progress.place
        if progress.inside_on_ranks:
            progress.refuse_others(self.path, found.name, self._batches(place), trainer.ranks.world_size)
        trainer.restore(found.state)
        self.evaluator.restore(found.state)
        if found.unfinished is not None:
            trainer.resume_unfinished(found.unfinished)
        log.info("continuing %s %s", self.path, place.described(bool(trainer.journal.done)))
        self.directory.begin(place.iteration, trainer.journal.pieces, progress.records_length)
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
        progress = SavedProgress(
            place=place,
            batches=self._batches(place),
            inside_on_ranks=self.trainer.ranks.world_size if inside else 0,
            records_length=self.directory.written,
        )
        return {**self.trainer.state(), **self.evaluator.state(), **progress.state()}

    def _batches(self, place: Place) -> dict[str, int]:
        """Return the batch sizes that divide the present evaluation or iteration into resumable results."""
        if place.evaluating:
            return {"evaluation.sampler.batch": self.evaluator.evaluation.batch}
        return {"rollout.batch": self.trainer.rollouts.at_once, "training.batch": self.trainer.updater.at_once}
