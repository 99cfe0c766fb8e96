"""One run: instantiates what the configuration names, wires it, and goes from the newest checkpoint to the budget."""

import logging
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flash_grpo import checkpoint, manifest, samples
from flash_grpo.accounting import EVALUATION, Budget, Meter
from flash_grpo.directory import RunDirectory
from flash_grpo.distributed import Ranks
from flash_grpo.ema import EMA
from flash_grpo.evaluate import Evaluated, Evaluation
from flash_grpo.identity import AT_ONCE
from flash_grpo.journal import Journal, Leave
from flash_grpo.method import Method
from flash_grpo.policies import Policy
from flash_grpo.prompts import Layout, Prompts
from flash_grpo.records import Cost, EvalRecord, IterationRecord, read_manifest, read_records
from flash_grpo.trainer import RewardError, Trainer, refuse_drift
from flash_grpo.types import FlowSchedule

log = logging.getLogger(__name__)
COUNTS = (
    "threads",
    "rollout.batch",
    "training.batch",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.max_idle_starts",
    "evaluation.sampler.noises_per_prompt",
    "evaluation.sampler.batch",
)


class ConfigError(ValueError):
    """Bad input: one line, told before any work is done."""


class Interrupted(Exception):
    """Asked to stop; the run was saved and the same command continues it."""


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
            samples.contact_sheet(self.directory / "samples" / sheet, evaluated.videos)
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


def _advance(bar: tqdm, spent: float, record: IterationRecord) -> None:
    if not bar.disable:
        seconds = record.cost.device_seconds
        bar.postfix[0] = f"iteration {record.iteration}, reward {record.reward_mean:.3f}, {seconds:.1f} device-s"
        bar.update(min(100.0, 100 * spent) - bar.n)


class StopRequest:
    """Ctrl-C or SIGTERM asks for a stop after the micro-batch under way; a second Ctrl-C does not wait for it.

    Under Slurm SIGTERM and USR2 are blocked before Python starts (see `slurm/`): they stay pending until looked for here,
    so that none is lost in start-up or in C code, and no process that the run started dies of them.
    """

    def __init__(self) -> None:
        self._noted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        return self._noted or bool(signal.sigpending() & {signal.SIGTERM, signal.SIGUSR2})

    def _note(self, number: int, frame: Any) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = True
        log.warning("%s: saving after this micro-batch", signal.Signals(number).name)


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


def check_counts(cfg: DictConfig) -> None:
    for key in COUNTS:
        count = OmegaConf.select(cfg, key)
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"{key}={count}: must be at least 1")
    if not isinstance(cfg.evaluation.every, int | float) or not 0 < cfg.evaluation.every <= 1:
        raise ConfigError(f"evaluation.every={cfg.evaluation.every}: a share of the budget, above 0 and at most 1")


def planned(cfg: DictConfig, world_size: int) -> tuple[FlowSchedule, Method, Prompts, Layout]:
    """What a run consists of but for its models, each part fitting the others."""
    schedule = build(cfg.schedule, "schedule")
    method = build(cfg.method, "method")
    checked(method.plan.check, len(schedule))
    checked(method.advantage, torch.zeros(1, 2))
    prompts = build(cfg.prompts, "prompts")
    sizes = {**cfg.rollout.layout, "optimizer_steps": cfg.training.optimizer_steps}
    return schedule, method, prompts, checked(Layout, **sizes, world_size=world_size)


def prepare_trainer(cfg: DictConfig, ranks: Ranks) -> Trainer:
    """Checks everything that can be checked, cheap things first, and only then loads the model."""
    torch.set_num_threads(cfg.threads)
    if ranks.is_main and (told := tiny_sizes(cfg)):
        log.warning(told)
    schedule, method, prompts, layout = planned(cfg, ranks.world_size)
    reward = build(cfg.reward, "reward")
    policy = build(cfg.model, "model", device=ranks.device, lora=cfg.optim.lora)
    if method.kl_weight:
        policy.keep_base()
    return Trainer(
        policy=policy,
        reward=reward,
        prompts=prompts,
        layout=layout,
        method=method,
        schedule=schedule,
        optimizer=build(cfg.optim.optimizer, "optim.optimizer", params=list(policy.trainable().values())),
        ema=EMA(policy.trainable(), **cfg.optim.ema),
        ranks=ranks,
        meter=Meter(ranks, policy.flops_per_forward),
        journal=Journal(ranks),
        seed=cfg.seed,
        max_gradient_norm=cfg.optim.max_gradient_norm,
        rollout_batch=cfg.rollout.batch,
        update_batch=cfg.training.batch,
    )


def tiny_sizes(cfg: DictConfig) -> str:
    """What of the tiny world's sizes a large model is left with; empty where there is none."""
    found = [] if cfg.optim.lora else ["every weight is trained (optim=lora)"]
    found += [f"{key}={size}" for key in AT_ONCE if (size := OmegaConf.select(cfg, key)) > 16]
    if not found or "architecture" not in cfg.model:
        return ""
    return f"model.path={cfg.model.path} with the tiny world's sizes: {', '.join(found)}; recipe=wan21_1p3b has the release's"


def policy_of(config: dict[str, Any], device: str) -> Policy:
    """The model of a run that has been, from its manifest's configuration: with its adapters, before any training; without
    what only the run's own device may have."""
    cfg = OmegaConf.create(config)
    for key, plain in (("attention", None), ("compile", False)):
        if key in cfg.model:
            cfg.model[key] = plain
    return build(cfg.model, "model", device=device, lora=cfg.optim.get("lora"))


def refuse_unusable(evaluated: Evaluated, iteration: int) -> None:
    unusable = [text for text, reward in evaluated.prompt_rewards.items() if not math.isfinite(reward)]
    if unusable:
        raise RewardError(f"evaluation at iteration {iteration}: the reward of {unusable[0]!r} is not finite")


def device(cfg: DictConfig) -> str:
    if cfg.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={cfg.device}: allowed are auto, cpu, cuda")
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no GPU here")
    if cfg.device == "auto" and "SLURM_GPUS_ON_NODE" in os.environ and not torch.cuda.is_available():
        raise ConfigError("Slurm gave this job GPUs, and torch finds none here (device=cpu to do without)")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


def build(node: DictConfig, key: str, **more: Any) -> Any:
    """Hydra's instantiate, with the part's own complaint as a `ConfigError`."""
    try:
        return instantiate(node, **more)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise ConfigError(str(error.__cause__)) from error
        if isinstance(error.__cause__, TypeError):
            raise ConfigError(f"{key}: {error.__cause__}") from error
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):  # Hydra's own: no such target
            why = str(error.__cause__ or error).partition(", set env")[0]
            raise ConfigError(f"{key}: {' '.join(why.split())}") from error
        raise


def checked(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def summary(directory: Path) -> str:
    """What a person wants to know when the run is over."""
    evaluations = [record for record in read_records(directory) if record["kind"] == "evaluation"]
    first, last = evaluations[0], evaluations[-1]
    gains = [last["prompt_rewards"][text] - value for text, value in first["prompt_rewards"].items()]
    gain, spread = torch.tensor(gains).mean(), torch.tensor(gains).std() / len(gains) ** 0.5
    cost = last["cost"]
    return (
        f"evaluation reward {first['reward_mean']:.3f} -> {last['reward_mean']:.3f} "
        f"({gain:+.3f} ± {1.96 * spread:.3f}, 95 %, paired over {len(gains)} prompts)\n"
        f"cost              {cost['device_seconds']:.1f} device-seconds, {cost['pflop']:.4f} PFLOP, "
        f"{last['iteration']} iterations\n"
        f"records           {directory / 'records.jsonl'}\nsamples           {directory / 'samples'}"
    )
