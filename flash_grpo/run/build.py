"""Build a run's objects from its configuration. No other file instantiates what a configuration names."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.batches import Layout, Prompts
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.paths import Path
from flash_grpo.algorithm.protocols import Policy, Reward, score_flops
from flash_grpo.algorithm.scoring import CheckedReward
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.records.full_disk import FullDiskError
from flash_grpo.records.identity import AT_ONCE
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run.settings import ConfigError
from flash_grpo.run.targets import (
    check_arguments,
    check_method,
    check_path,
    check_reward,
    check_solver,
    check_texts,
    names_a_key,
)
from flash_grpo.training.anneal import Anneal
from flash_grpo.training.ema import EMA
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.rollouts import RolloutMaker
from flash_grpo.training.trainer import Trainer
from flash_grpo.training.update import Updater

log = logging.getLogger(__name__)


def planned(cfg: DictConfig, world_size: int) -> tuple[FlowSchedule, Method, Prompts, Layout]:
    """Build everything that is not a model: schedule, method, prompts, layout. ConfigError if they do not fit together."""
    schedule = build(cfg.schedule, "schedule", FlowSchedule)
    check_arguments(cfg.method.plan, "method.plan")
    check_arguments(cfg.reward, "reward")
    method = build(cfg.method, "method", Method)
    check_method(method, schedule)
    check_arguments(cfg.model, "model")
    check_arguments(cfg.rollout.solve, "rollout.solve")
    check_solver(build(cfg.rollout.solve, "rollout.solve", Callable), schedule)
    prompts = build(cfg.prompts, "prompts", Prompts)
    check_texts(cfg.reward, prompts)
    shares = {key: value for key, value in cfg.training.items() if key != "batch"}
    layout = checked(Layout, **cfg.rollout.layout, **shares, seed=cfg.seed, world_size=world_size)
    check_path(build(cfg.rollout.path, "rollout.path", Path), method, layout, len(schedule))
    return schedule, method, prompts, layout


def prepare_trainer(cfg: DictConfig, ranks: Ranks) -> Trainer:
    """Build the trainer. Whatever can be checked is checked first, cheap things before slow ones; then the model is loaded."""
    torch.set_num_threads(cfg.threads)
    if ranks.is_main and (warning := tiny_sizes(cfg)):
        log.warning(warning)
    parts = planned(cfg, ranks.world_size)
    reward = build_reward(cfg.reward)
    policy = build(cfg.model, "model", Policy, device=ranks.device, lora=cfg.optim.lora)
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
        reward=CheckedReward(reward),
        method=method,
        schedule=schedule,
        solve=build(cfg.rollout.solve, "rollout.solve"),
        seed=cfg.seed,
        at_once=cfg.rollout.batch,
        meter=meter,
        journal=journal,
        path=build(cfg.rollout.path, "rollout.path", Path),
    )
    updater = Updater(
        policy=policy,
        method=method,
        schedule=schedule,
        layout=layout,
        optimizer=optimizer(cfg.optim.optimizer, list(policy.trainable().values())),
        ema=checked(EMA, policy.trainable(), **cfg.optim.ema),
        ranks=ranks,
        meter=meter,
        journal=journal,
        max_gradient_norm=math.inf if cfg.optim.max_gradient_norm is None else cfg.optim.max_gradient_norm,
        at_once=cfg.training.batch,
        anneal=build(cfg.optim.anneal, "optim.anneal", Anneal),
        seed=cfg.seed,
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


def build_reward(node: DictConfig) -> Reward:
    """Build a reward; ConfigError as in `build`, and for one that does not take videos and texts."""
    reward: Reward = build(node, "reward", Callable)
    check_reward(reward)
    return reward


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
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no GPU here")
    if cfg.device == "auto" and (job := SlurmJob.here()) and job.has_gpus and not torch.cuda.is_available():
        raise ConfigError("Slurm gave this job GPUs, but torch finds none here (device=cpu runs without GPUs)")
    return "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"


def optimizer(node: DictConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer; ConfigError for values with which it trains nothing, or away from the reward."""
    made = build(node, "optim.optimizer", torch.optim.Optimizer, params=parameters)
    group, key = made.param_groups[0], "optim.optimizer"
    checked(ranges.number, f"{key}.lr", group["lr"], above=0)
    checked(ranges.number, f"{key}.weight_decay", group.get("weight_decay", 0), at_least=0)
    checked(ranges.number, f"{key}.eps", group.get("eps", 0), at_least=0)
    for beta in group.get("betas", ()):
        checked(ranges.number, f"{key}.betas", beta, at_least=0, below=1)
    if group.get("maximize"):
        raise ConfigError(f"{key}.maximize=true: would train away from the reward; leave it out")
    return made


def build(node: DictConfig, key: str, kind: Any = object, **more: Any) -> Any:
    """Instantiate a node of the configuration; whatever making the object raises becomes a ConfigError.

    key: the node's dotted name, for the message. kind: what the object must be. more: further arguments.
    """
    try:
        made = _plain(instantiate(node, **more))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from error
    except Exception as error:  # of the object, as the cause of an InstantiationException, or Hydra's about the node
        raise ConfigError(_why_not_made(error, key)) from error
    if not isinstance(made, kind):
        raise ConfigError(f"{key}._target_={node._target_}: makes {type(made).__name__}, not {kind.__name__}")
    return made


def _why_not_made(error: Exception, key: str) -> str:
    """Return, in one line with the key, what Hydra or the object itself says."""
    cause = error.__cause__
    why = " ".join(str(cause or error).partition(", set env")[0].split())
    if not isinstance(cause, ValueError | OSError | TypeError | ImportError | None) or not why:
        why = f"{type(cause).__name__}: {why}"  # not written for readers: a KeyError's text is a key alone
    if not names_a_key(why):
        return f"{key}: {why}"
    return why.replace("schedule.", "evaluation.sampler.schedule.", 1) if key == "evaluation.sampler" else why


def _plain(made: Any) -> Any:
    """Replace Hydra's partial by a plain one: Hydra's checks its target again in every call, which takes half a millisecond."""
    return partial(made.func, *made.args, **made.keywords) if isinstance(made, partial) else made


def checked(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the function; an error about its arguments, or of the file system, becomes a ConfigError. A full disk is none."""
    try:
        return function(*args, **kwargs)
    except FullDiskError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
