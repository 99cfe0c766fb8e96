"""Build a run's objects from its configuration. No other file instantiates what a configuration names."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from flash_grpo.algorithm.batches import Layout, Prompts
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.protocols import Policy, Reward, score_flops
from flash_grpo.algorithm.schedule import check_stochastic
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.records.identity import AT_ONCE
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.training.ema import EMA
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.rollouts import RolloutMaker
from flash_grpo.training.trainer import Trainer
from flash_grpo.training.update import Updater

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
    """Bad input, described in one line, and found before any work is done."""


def check_counts(cfg: DictConfig) -> None:
    for key in COUNTS:
        count = OmegaConf.select(cfg, key)
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"{key}={count}: must be at least 1")
    if not isinstance(cfg.evaluation.every, int | float) or not 0 < cfg.evaluation.every <= 1:
        raise ConfigError(
            f"evaluation.every={cfg.evaluation.every}: must be a share of the budget, above 0 and at most 1"
        )


def planned(cfg: DictConfig, world_size: int) -> tuple[FlowSchedule, Method, Prompts, Layout]:
    """Build everything that is not a model: schedule, method, prompts, layout. ConfigError if they do not fit together."""
    schedule = build(cfg.schedule, "schedule")
    method = build(cfg.method, "method")
    if not hasattr(method.plan, "candidates"):
        raise ConfigError(
            f"method.plan: {type(method.plan).__name__} has no candidates(num_steps), see algorithm/plans.py"
        )
    checked(check_stochastic, schedule, checked(method.plan.candidates, len(schedule)))
    checked(method.advantage, torch.zeros(1, 2))
    prompts = build(cfg.prompts, "prompts")
    shares = {key: value for key, value in cfg.training.items() if key != "batch"}
    layout = checked(Layout, **cfg.rollout.layout, **shares, seed=cfg.seed, world_size=world_size)
    return schedule, method, prompts, layout


def prepare_trainer(cfg: DictConfig, ranks: Ranks) -> Trainer:
    """Build the trainer. Whatever can be checked is checked first, cheap things before slow ones; then the model is loaded."""
    torch.set_num_threads(cfg.threads)
    if ranks.is_main and (warning := tiny_sizes(cfg)):
        log.warning(warning)
    parts = planned(cfg, ranks.world_size)
    reward = build(cfg.reward, "reward")
    policy = build(cfg.model, "model", device=ranks.device, lora=cfg.optim.lora)
    policy.keep_base()
    return wired(cfg, ranks, policy, reward, parts)


Planned = tuple[FlowSchedule, Method, Prompts, Layout]


def wired(cfg: DictConfig, ranks: Ranks, policy: Policy, reward: Reward, parts: Planned) -> Trainer:
    """Connect policy, reward and the planned parts to a trainer. parts: as returned by `planned`."""
    schedule, method, prompts, layout = parts
    flops = replace(policy.flops, score=score_flops(reward, _video_shape(cfg), _median_text(prompts)))
    meter, journal = Meter(ranks, flops), Journal(ranks, policy.forwards_together)
    rollouts = RolloutMaker(
        policy=policy,
        reward=reward,
        method=method,
        schedule=schedule,
        solve=build(cfg.rollout.solve, "rollout.solve"),
        seed=cfg.seed,
        at_once=cfg.rollout.batch,
        meter=meter,
        journal=journal,
    )
    updater = Updater(
        policy=policy,
        method=method,
        schedule=schedule,
        layout=layout,
        optimizer=build(cfg.optim.optimizer, "optim.optimizer", params=list(policy.trainable().values())),
        ema=EMA(policy.trainable(), **cfg.optim.ema),
        ranks=ranks,
        meter=meter,
        journal=journal,
        max_gradient_norm=cfg.optim.max_gradient_norm,
        at_once=cfg.training.batch,
    )
    return Trainer(
        prompts=prompts,
        layout=layout,
        rollouts=rollouts,
        updater=updater,
        ranks=ranks,
        meter=meter,
        journal=journal,
        seed=cfg.seed,
    )


def _video_shape(cfg: DictConfig) -> tuple[int, ...]:
    return (cfg.model.frames, cfg.model.height, cfg.model.width, 3)


def _median_text(prompts: Prompts) -> str:
    """Return a training text of median length: FLOPs of a reward that reads the text are counted with it."""
    return sorted(prompts.train, key=len)[len(prompts.train) // 2]


def tiny_sizes(cfg: DictConfig) -> str:
    """Return a warning if a large model would run with batch sizes meant for the tiny world; '' otherwise."""
    oversized = [] if cfg.optim.lora else ["every weight is trained (optim=lora)"]
    oversized += [f"{key}={size}" for key in AT_ONCE if (size := OmegaConf.select(cfg, key)) > 16]
    if not oversized or "architecture" not in cfg.model:
        return ""
    sizes = ", ".join(oversized)
    return f"model.path={cfg.model.path} with the tiny world's sizes: {sizes}; recipe=wan21_1p3b has the release's"


def device(cfg: DictConfig) -> str:
    if cfg.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={cfg.device}: allowed are auto, cpu, cuda")
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no GPU here")
    if cfg.device == "auto" and (job := SlurmJob.here()) and job.has_gpus and not torch.cuda.is_available():
        raise ConfigError("Slurm gave this job GPUs, but torch finds none here (device=cpu runs without GPUs)")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


def build(node: DictConfig, key: str, **more: Any) -> Any:
    """Instantiate a node of the configuration; an error that the object raises becomes a ConfigError.

    key: the node's dotted name, for the message. more: further arguments.
    """
    try:
        return _plain(instantiate(node, **more))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise ConfigError(str(error.__cause__)) from error
        if isinstance(error.__cause__, TypeError):
            raise ConfigError(f"{key}: {error.__cause__}") from error
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):  # Hydra found no such target
            why = str(error.__cause__ or error).partition(", set env")[0]
            raise ConfigError(f"{key}: {' '.join(why.split())}") from error
        raise


def _plain(made: Any) -> Any:
    """Replace Hydra's partial by a plain one: Hydra's checks its target again in every call, which takes half a millisecond."""
    return partial(made.func, *made.args, **made.keywords) if isinstance(made, partial) else made


def checked(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
