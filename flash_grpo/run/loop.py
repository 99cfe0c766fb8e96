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
from flash_grpo.run.build import build, checked, device, planned, prepare_trainer
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.progress import Budget, Place, advance, progress_bar
from flash_grpo.run.saving import Saver
from flash_grpo.run.settings import ConfigError, check
from flash_grpo.run.stop import Interrupted, StopRequest
from flash_grpo.training.evaluated import Evaluated
from flash_grpo.training.evaluation import Evaluation
from flash_grpo.training.journal import Leave, raise_failure
from flash_grpo.training.meter import EVALUATION
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.score_checks import SpreadWatch
from flash_grpo.training.trainer import Trainer
from flash_grpo.training.update import refuse_drift

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """A run that can be continued: its trainer and evaluation, its directory and its budget.

    evaluate_every: a share of the budget. checkpoint_every: in iterations. place: how far the run has come.
    """

    directory: RunDirectory
    trainer: Trainer
    evaluation: Evaluation
    budget: Budget
    saver: Saver
    evaluate_every: float
    checkpoint_every: int
    place: Place = field(default_factory=Place)
    spread: SpreadWatch = field(default_factory=SpreadWatch)

    @property
    def path(self) -> Path:
        return self.directory.path

    def to_the_end(self, stop: StopRequest) -> None:
        """Iterate until the budget is spent. Every rank runs this; rank 0 writes."""
        self.place = self.saver.resume()
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

    def _iterate(self, bar: tqdm) -> None:
        if self.place.evaluated < 0:
            self._evaluate("start")
            self.saver.save(self.place)
        elif self.place.evaluating and self._spent() < 1:
            self._evaluate()
        while (spent := self._spent()) < 1:
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
        trainer = self.trainer
        if not self.place.evaluating:
            self.place = replace(self.place, evaluating=True)
            self.saver.save(self.place)  # an evaluation may take hours
        with trainer.updater.ema.applied():
            evaluated = self.evaluation(
                trainer.policy,
                trainer.rollouts.reward,
                trainer.prompts.test,
                trainer.ranks,
                journal=trainer.journal,
                timed=lambda: trainer.meter.phase(EVALUATION, only_completed=True),
            )
        trainer.meter.charge(evaluated.device_seconds, EVALUATION)
        trainer.meter.settle()
        self.place = replace(self.place, evaluating=False, evaluated=self.place.iteration)
        self._write(self._eval_record(evaluated))
        if samples and trainer.ranks.is_main:
            contact_sheet.keep(self.path / "samples", samples, evaluated.videos)
        log.info("iteration %d: evaluation reward %s", self.place.iteration, evaluated)

    def _eval_record(self, evaluated: Evaluated) -> EvalRecord:
        return EvalRecord(
            iteration=self.place.iteration,
            optimizer_steps=self.trainer.updater.optimizer_steps,
            cost=self.trainer.meter.cost,
            evaluation_seconds=self.trainer.meter.evaluation_seconds,
            reward_mean=evaluated.mean,
            reward_sem=evaluated.sem,
            reward_parts=evaluated.parts,
            prompt_rewards=evaluated.prompt_rewards,
            n=evaluated.reward_PK.numel(),
            diversity=evaluated.diversity,
            base_distance=evaluated.base_distance,
        )

    def _write(self, record: IterationRecord | EvalRecord) -> None:
        if self.trainer.ranks.is_main:
            self.directory.append(record)


def run(cfg: DictConfig, run_name: str) -> Path:
    """Run the configuration to its budget and return the run's directory. FullDiskError for want of space anywhere."""
    place = claim(cfg, run_name)
    try:
        with naming_full_disk(place.path):
            load(cfg, place).to_the_end(StopRequest())
            place.complete()
    except (Interrupted, KeyboardInterrupt) as error:
        place.leave(f"interrupted: {error}")
        raise
    except ConfigError as error:
        if SlurmJob.here():  # the run was submitted: run.json must say why it failed
            place.fail(error)
        else:
            place.leave_as_found()
        raise
    except BaseException as error:
        place.fail(error)
        raise
    return place.path


def claim(cfg: DictConfig, run_name: str) -> RunDirectory:
    """Check everything that needs no model, then lock and return the run's directory. ConfigError if it is refused."""
    check(cfg)
    build(cfg.budget, "budget", Budget)
    build(cfg.evaluation.sampler, "evaluation.sampler", Evaluation)
    ranks = Ranks(device(cfg))
    schedule, _, prompts, _ = planned(cfg, ranks.world_size)
    report(prompts, ranks)
    path, config = directory_of(cfg, run_name), resolved(cfg)
    if earlier := checked(read_manifest, path):
        checked(manifest.refuse_another_format, path, earlier)
        checked(manifest.refuse_another_config, path, earlier.config, config)
        checked(manifest.refuse_other_prompts, path, earlier.prompts_hash, prompts)
    try:
        described = manifest.describe(config, run_name, schedule, prompts, ranks)
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


def load(cfg: DictConfig, directory: RunDirectory) -> Run:
    """Build the run, with its models loaded and nothing computed yet."""
    directory.refuse_endless_restarts()
    trainer, evaluation = prepare_trainer(cfg, directory.ranks), build(cfg.evaluation.sampler, "evaluation.sampler")
    return Run(
        directory=directory,
        trainer=trainer,
        evaluation=evaluation,
        budget=build(cfg.budget, "budget"),
        saver=Saver(directory=directory, trainer=trainer, keep=cfg.checkpoint.keep, evaluation_batch=evaluation.batch),
        evaluate_every=cfg.evaluation.every,
        checkpoint_every=cfg.checkpoint.every,
    )
