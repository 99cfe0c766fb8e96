"""One run: instantiates what the configuration names, wires it, and goes from the newest checkpoint to the budget."""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.records.files import read_manifest
from flash_grpo.records.schema import Cost, EvalRecord
from flash_grpo.run import checkpoint, contact_sheet, manifest
from flash_grpo.run.build import ConfigError, build, check_counts, checked, device, planned, prepare_trainer
from flash_grpo.run.directory import RunDirectory
from flash_grpo.run.progress import Budget, _advance
from flash_grpo.run.stop import Interrupted, StopRequest
from flash_grpo.training.evaluation import Evaluated, Evaluation
from flash_grpo.training.journal import Leave
from flash_grpo.training.meter import EVALUATION
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.trainer import RewardError, Trainer, refuse_drift

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """A trainer with its directory, its budget and its place in it."""

    place: RunDirectory
    trainer: Trainer
    evaluation: Evaluation
    budget: Budget
    evaluate_every: float
    checkpoint_every: int
    checkpoint_keep: int
    iteration: int = 0
    evaluated: int = -1
    evaluating: bool = False

    @property
    def directory(self) -> Path:
        return self.place.path

    def to_the_end(self, stop: "StopRequest") -> None:
        """Iterates until the budget is spent. Every rank runs this; rank 0 writes."""
        self._resume()
        self.trainer.journal.asked = lambda: stop.requested
        try:
            with logging_redirect_tqdm(), self._progress() as bar:
                self._iterate(bar)
            if self.evaluated < self.iteration:
                self._evaluate("end.png")
                self._save()
        except Leave:
            self._leave()
            self.trainer.journal.raise_failure()
            raise Interrupted(f"saved {self._where()}; the same command continues this run") from None

    def _iterate(self, bar: tqdm) -> None:
        if self.evaluated < 0:
            self._evaluate("start.png")
            self._save()
        elif self.evaluating and self._spent() < 1:
            self._evaluate()
        while (spent := self._spent()) < 1:
            record = self.trainer.iterate(self.iteration + 1)
            self.iteration = record.iteration
            self._write(record)
            refuse_drift(record, self.trainer.method.ratio_clip)
            _advance(bar, self._spent(), record)
            if self._due(spent) and self._spent() < 1:
                self._evaluate()
            if self.iteration % self.checkpoint_every == 0:
                self._save()

    def _where(self) -> str:
        during = "in the evaluation after" if self.evaluating else "in the middle of the one after"
        return f"{f'{during} ' if self.trainer.journal.done else 'after '}iteration {self.iteration}"

    def _due(self, spent_before: float) -> bool:
        """Whether the last iteration has crossed a multiple of `evaluate_every`, a share of the budget."""
        reached, before = (int(spent / self.evaluate_every + 1e-9) for spent in (self._spent(), spent_before))
        return reached > before

    def _spent(self) -> float:
        return self.budget.spent(self.iteration, self.trainer.meter.cost)

    def _evaluate(self, sheet: str | None = None) -> None:
        trainer = self.trainer
        if not self.evaluating:
            self.evaluating = True
            self._save()  # an evaluation may take hours
        with trainer.ema.applied():
            evaluated = self.evaluation(
                trainer.policy,
                trainer.reward,
                trainer.prompts.test,
                trainer.ranks,
                journal=trainer.journal,
                timed=lambda: trainer.meter.phase(EVALUATION, whole=True),
            )
        self.evaluating = False
        trainer.meter.charge(evaluated.device_seconds, EVALUATION)
        trainer.meter.settle()
        refuse_unusable(evaluated, self.iteration)
        self.evaluated = self.iteration
        self._write(self._eval_record(evaluated))
        if sheet and trainer.ranks.is_main:
            contact_sheet.contact_sheet(self.directory / "samples" / sheet, evaluated.videos)
        log.info("iteration %d: evaluation reward %s", self.iteration, evaluated)

    def _eval_record(self, evaluated: Evaluated) -> EvalRecord:
        return EvalRecord(
            iteration=self.iteration,
            optimizer_steps=self.trainer.optimizer_steps,
            cost=self.trainer.meter.cost,
            evaluation_seconds=self.trainer.meter.evaluation_seconds,
            reward_mean=evaluated.mean,
            reward_sem=evaluated.sem,
            reward_parts=evaluated.parts,
            prompt_rewards=evaluated.prompt_rewards,
            n=evaluated.reward_PK.numel(),
        )

    def _write(self, record: Any) -> None:
        if self.trainer.ranks.is_main:
            self.place.records.append(record)

    def _save(self) -> None:
        if self.trainer.ranks.is_main:
            checkpoint.save(self.directory, self.iteration, self._state(), self.checkpoint_keep)
        self.trainer.ranks.barrier()

    def _leave(self) -> None:
        """Saves also what each rank has done of the iteration, or the evaluation, under way."""
        trainer = self.trainer
        if not trainer.journal.done:
            self._save()
            return
        mine = {
            "done": trainer.journal.done,
            "gradients": {name: value.grad for name, value in trainer.policy.trainable().items()},
            "unsettled": trainer.meter.unsettled(),
        }
        checkpoint.save_inside(self.directory, self.iteration, self._state, mine, self.checkpoint_keep, trainer.ranks)

    def _state(self) -> dict[str, Any]:
        """Everything that what comes next depends on, and the records' length at this moment."""
        trainer = self.trainer
        return {
            "parameters": {name: value.detach() for name, value in trainer.policy.trainable().items()},
            "optimizer": trainer.optimizer.state_dict(),
            "ema": trainer.ema.shadow,
            "progress": {
                "iteration": self.iteration,
                "evaluated": self.evaluated,
                "evaluating": self.evaluating,
                "pieces": trainer.journal.pieces,
                "batches": self._batches(),
                "inside_on_ranks": trainer.ranks.world_size if trainer.journal.done else 0,
                "optimizer_steps": trainer.optimizer_steps,
                "cost": vars(trainer.meter.cost),
                "evaluation_seconds": trainer.meter.evaluation_seconds,
                "records_length": self.place.records.length,
            },
        }

    def _resume(self) -> None:
        trainer = self.trainer
        found = trainer.ranks.from_main(checkpoint.newest_name(self.directory))
        state = checkpoint.load(self.directory, found) if found else None
        if state:
            trainer.ema.load(state["parameters"])
            trainer.ema.shadow = {name: value.to(trainer.ranks.device) for name, value in state["ema"].items()}
            trainer.optimizer.load_state_dict(state["optimizer"])
            progress = state["progress"]
            self.iteration, self.evaluated = progress["iteration"], progress["evaluated"]
            self.evaluating, trainer.journal.pieces = progress["evaluating"], progress["pieces"]
            trainer.optimizer_steps = progress["optimizer_steps"]
            trainer.meter.cost = Cost(**progress["cost"])
            trainer.meter.evaluation_seconds = progress["evaluation_seconds"]
            if progress["inside_on_ranks"]:
                self._resume_inside(found, progress["inside_on_ranks"], progress["batches"])
            log.info("continuing %s %s", self.directory, self._where())
        length = state["progress"]["records_length"] if state else 0
        self.place.begin(self.iteration, trainer.journal.pieces, length)

    def _batches(self) -> dict[str, int]:
        """What the evaluation, or the iteration, under way is cut into pieces by."""
        if self.evaluating:
            return {"evaluation.sampler.batch": self.evaluation.batch}
        return {"rollout.batch": self.trainer.rollout_batch, "training.batch": self.trainer.update_batch}

    def _resume_inside(self, found: str, world_size: int, batches: dict[str, int]) -> None:
        trainer = self.trainer
        if batches != self._batches():
            raise ConfigError(
                f"{self.directory} was left in the middle of micro-batches of other sizes: go on with "
                f"{' '.join(f'{key}={size}' for key, size in batches.items())}, or delete its newest checkpoint, the one "
                "with a +"
            )
        if world_size != trainer.ranks.world_size:
            raise ConfigError(
                f"{self.directory} was left in the middle of an iteration by {world_size} ranks, and only as many can go on "
                f"there; these are {trainer.ranks.world_size}. Or delete its newest checkpoint, the one with a +"
            )
        mine = checkpoint.of_this_rank(self.directory, found, trainer.ranks)
        trainer.journal.done = mine["done"]
        trainer.meter.resume(mine["unsettled"])
        for name, value in trainer.policy.trainable().items():
            value.grad = mine["gradients"][name]

    def _progress(self) -> tqdm:
        return tqdm(
            total=100,
            initial=min(100, round(100 * self._spent(), 2)),
            desc=self.directory.name,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix[0]}, {elapsed} gone, {remaining} left",
            postfix=["evaluating the start"],
            disable=None if self.trainer.ranks.is_main else True,
        )


def run(cfg: DictConfig, run_name: str) -> Path:
    """Runs the configuration to its budget and returns the run's directory."""
    place = claim(cfg, run_name)
    try:
        load(cfg, place).to_the_end(StopRequest())
    except (Interrupted, KeyboardInterrupt) as error:
        if place.begun:
            place.finish("running", f"interrupted: {error}")
        else:
            place.leave_as_found()
        raise
    except ConfigError as error:
        if "SLURM_JOB_ID" in os.environ:  # what was refused before it was queued is another matter
            place.fail(error)
        else:
            place.leave_as_found()
        raise
    except BaseException as error:
        place.fail(error)
        raise
    place.finish("completed")
    return place.path


def claim(cfg: DictConfig, run_name: str) -> RunDirectory:
    """The run's directory, once all is checked that needs no model. ConfigError where it is refused: nothing is written."""
    check_counts(cfg)
    build(cfg.budget, "budget")
    build(cfg.evaluation.sampler, "evaluation.sampler")
    ranks = Ranks(device(cfg))
    schedule, _, prompts, _ = planned(cfg, ranks.world_size)
    report(prompts, ranks)
    path, config = directory_of(cfg, run_name), OmegaConf.to_container(cfg, resolve=True)
    if known := read_manifest(path):
        checked(manifest.refuse_another_config, path, known.config, config)
        checked(manifest.refuse_other_prompts, path, known.prompts_hash, prompts)
    try:
        described = manifest.describe(config, run_name, schedule, prompts, ranks)
        return checked(RunDirectory, path, described, ranks, cfg.checkpoint.max_idle_starts)
    except Leave:
        raise Interrupted("nothing was done yet; the same command begins or continues this run") from None


def report(prompts: Prompts, ranks: Ranks) -> None:
    for told in prompts.oddities if ranks.is_main else []:
        log.warning(told)


def directory_of(cfg: DictConfig, run_name: str) -> Path:
    if "/" in str(run_name):
        raise ConfigError(f"run_name={run_name}: a directory's name, so without a /")
    return Path(str(cfg.runs_root), str(cfg.study), str(run_name))


def load(cfg: DictConfig, place: RunDirectory) -> Run:
    """The run with its models; nothing has been computed yet."""
    place.refuse_endless_restarts()
    return Run(
        place=place,
        trainer=prepare_trainer(cfg, place.ranks),
        evaluation=build(cfg.evaluation.sampler, "evaluation.sampler"),
        budget=build(cfg.budget, "budget"),
        evaluate_every=cfg.evaluation.every,
        checkpoint_every=cfg.checkpoint.every,
        checkpoint_keep=cfg.checkpoint.keep,
    )


def refuse_unusable(evaluated: Evaluated, iteration: int) -> None:
    unusable = [text for text, reward in evaluated.prompt_rewards.items() if not math.isfinite(reward)]
    if unusable:
        raise RewardError(f"evaluation at iteration {iteration}: the reward of {unusable[0]!r} is not finite")
