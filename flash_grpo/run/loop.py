"""Run one configuration: claim its directory, build its objects, and train from the newest checkpoint to the budget."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.records.files import read_manifest
from flash_grpo.records.full_disk import naming_full_disk
from flash_grpo.records.schema import EvalRecord, IterationRecord
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run import contact_sheet, manifest
from flash_grpo.run.build import build, build_evaluation, build_held_out, checked, device, planned, prepare_trainer
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.evaluating import Evaluator
from flash_grpo.run.guard import Guard
from flash_grpo.run.guidance import guided
from flash_grpo.run.progress import Budget, Place, advance, progress_bar
from flash_grpo.run.saving import Saver
from flash_grpo.run.settings import ConfigError, check
from flash_grpo.run.stop import Interrupted, StopRequest
from flash_grpo.training.journal import raise_failure
from flash_grpo.training.pace import Leave
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.score_checks import SpreadWatch
from flash_grpo.training.trainer import Trainer
from flash_grpo.training.update import refuse_drift

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """A run that can be continued: its trainer and evaluator, its directory and its budget.

    evaluate_every: a share of the budget. checkpoint_every: in iterations. place: how far the run has come.
    """

    directory: RunDirectory
    trainer: Trainer
    evaluator: Evaluator
    guard: Guard
    budget: Budget
    saver: Saver
    evaluate_every: float
    checkpoint_every: int
    place: Place = field(default_factory=Place)
    spread: SpreadWatch = field(default_factory=SpreadWatch)

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def stopped(self) -> str:
        """Return which guard has ended the run before its budget, and why; '' if none has."""
        return self.guard.stop_reason if self._spent() < 1 else ""

    def to_the_end(self, stop: StopRequest) -> None:
        """Iterate until the budget is spent or a guard ends the run. Every rank runs this; rank 0 writes."""
        self.place = self.saver.resume()
        self.guard.recall(self.path, self.trainer.ranks)
        self.trainer.journal.asked = lambda: stop.requested
        try:
            with (
                logging_redirect_tqdm(),
                progress_bar(self.path.name, self._spent(), self.trainer.ranks.is_main) as bar,
            ):
                self._iterate(bar)
            if self.place.evaluated < self.place.iteration:
                self._evaluate("end")
                self.saver.save(self.place)
        except Leave:
            self.saver.leave(self.place)
            raise_failure(self.trainer.journal)
            where = self.place.described(bool(self.trainer.journal.done))
            raise Interrupted(f"saved {where}; the same command continues this run") from None

    def _evaluate_first(self) -> None:
        """Evaluate the start of a new run, or go on with the evaluation in which the run was stopped."""
        if self.place.evaluated < 0:
            self._evaluate("start")
            self.saver.save(self.place)
        elif self.place.evaluating and self._spent() < 1:
            self._evaluate()

    def _iterate(self, bar: tqdm) -> None:
        self._evaluate_first()
        while (spent := self._spent()) < 1 and not self.stopped:
            record = self.trainer.iterate(self.place.iteration + 1)
            self.place = replace(self.place, iteration=record.iteration)
            self._write(record)
            if (line := self.spread.line(record)) and self.trainer.ranks.is_main:
                log.warning(line)
            refuse_drift(record, self.trainer.method.ratio_clip)
            advance(bar, self._spent(), record)
            if self._due(spent) and self._spent() < 1:
                self._evaluate()
            if self.place.iteration % self.checkpoint_every == 0:
                self.saver.save(self.place)

    def _due(self, spent_before: float) -> bool:
        """Return True if the last iteration has crossed a multiple of `evaluate_every`, a share of the budget."""
        reached, before = (int(spent / self.evaluate_every + 1e-9) for spent in (self._spent(), spent_before))
        return reached > before

    def _spent(self) -> float:
        return self.budget.spent(self.place.iteration, self.trainer.meter.cost)

    def _evaluate(self, samples: str | None = None) -> None:
        """Evaluate the averaged weights. samples: name of the contact sheet to write, None for none."""
        if not self.place.evaluating:
            self.place = replace(self.place, evaluating=True)
            self.saver.save(self.place)  # an evaluation may take hours
        evaluated = self.evaluator.evaluate()
        self.place = replace(self.place, evaluating=False, evaluated=self.place.iteration)
        self._write(self.guard.judged(self.evaluator.record(self.place.iteration, evaluated)))
        if (sheet := samples or (self.stopped and "end")) and self.trainer.ranks.is_main:
            contact_sheet.keep(self.path / "samples", sheet, evaluated.videos)
        log.info("iteration %d: evaluation reward %s", self.place.iteration, evaluated)
        if (warning := self.stopped or self.guard.news) and self.trainer.ranks.is_main:
            log.warning(warning)
        if self.stopped:
            self.saver.save(self.place)

    def _write(self, record: IterationRecord | EvalRecord) -> None:
        if self.trainer.ranks.is_main:
            self.directory.append(record)


def run(cfg: DictConfig, run_name: str) -> Path:
    """Run the configuration to its budget and return the run's directory. FullDiskError for want of space anywhere."""
    place = claim(cfg, run_name)
    try:
        with naming_full_disk(place.path):
            (loaded := load(cfg, place)).to_the_end(StopRequest())
            place.complete(loaded.stopped)
    except (Interrupted, KeyboardInterrupt) as error:
        place.leave(f"interrupted: {error}")
        raise
    except ConfigError as error:
        if SlurmJob.here():  # the run was submitted: run.json must say why it failed
            place.fail(error)
        else:
            place.held.leave_as_found()
        raise
    except BaseException as error:
        place.fail(error)
        raise
    return place.path


def claim(cfg: DictConfig, run_name: str) -> RunDirectory:
    """Check everything that needs no model, then lock and return the run's directory. ConfigError if it is refused."""
    check(cfg)
    build(cfg.budget, "budget", Budget)
    build_evaluation(cfg)
    ranks = Ranks(device(cfg))
    schedule, _, prompts, _ = planned(cfg, ranks.world_size)
    report(prompts, ranks)
    path, config = directory_of(cfg, run_name), resolved(cfg)
    _refuse_another_run(path, config, prompts)
    try:
        described = checked(manifest.describe, config, run_name, schedule, prompts, ranks)
        return checked(RunDirectory, path, described, ranks, cfg.checkpoint.max_idle_starts)
    except Leave:
        raise Interrupted("nothing was done yet; the same command begins or continues this run") from None


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values, with every interpolation resolved."""
    return {str(key): value for key, value in cast(dict[Any, Any], OmegaConf.to_container(cfg, resolve=True)).items()}


def report(prompts: Prompts, ranks: Ranks) -> None:
    for oddity in prompts.oddities if ranks.is_main else []:
        log.warning(oddity)


def directory_of(cfg: DictConfig, run_name: str) -> Path:
    return Path(str(cfg.runs_root), str(cfg.study), str(run_name))


def _refuse_another_run(path: Path, config: dict[str, Any], prompts: Prompts) -> None:
    """Raise ConfigError if the directory holds a run of another version, configuration or prompts."""
    if earlier := checked(read_manifest, path):
        checked(manifest.refuse_another_run, path, earlier, config, prompts)


def load(cfg: DictConfig, directory: RunDirectory) -> Run:
    """Build the run, with its models loaded and nothing computed yet."""
    directory.refuse_endless_restarts()
    held_out = build_held_out(cfg)  # before the trainer, whose model takes minutes to load
    trainer, evaluation = prepare_trainer(cfg, directory.ranks), build_evaluation(cfg)
    policy = guided(trainer.policy, cfg, "evaluation")
    evaluator = Evaluator(trainer=trainer, policy=policy, evaluation=evaluation, held_out=held_out)
    guard = Guard(stop_when=dict(cfg.stop_when), best_by=cfg.checkpoint.best_by)
    return Run(
        directory=directory,
        trainer=trainer,
        evaluator=evaluator,
        guard=guard,
        budget=build(cfg.budget, "budget"),
        saver=Saver(directory=directory, trainer=trainer, evaluator=evaluator, guard=guard, keep=cfg.checkpoint.keep),
        evaluate_every=cfg.evaluation.every,
        checkpoint_every=cfg.checkpoint.every,
    )
