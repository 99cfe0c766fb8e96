"""Build a run's objects from its configuration. No other file instantiates what a configuration names."""

import inspect
import logging
import math
import pkgutil
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
from flash_grpo.algorithm.protocols import Policy, Reward, score_flops
from flash_grpo.algorithm.schedule import check_stochastic
from flash_grpo.algorithm.scoring import CheckedReward
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.records.identity import AT_ONCE
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.ema import EMA
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.rollouts import RolloutMaker
from flash_grpo.training.trainer import Trainer
from flash_grpo.training.update import Updater

log = logging.getLogger(__name__)
GIVEN_LATER = {"device", "lora"}  # arguments of a model that no configuration has


def planned(cfg: DictConfig, world_size: int) -> tuple[FlowSchedule, Method, Prompts, Layout]:
    """Build everything that is not a model: schedule, method, prompts, layout. ConfigError if they do not fit together."""
    schedule = build(cfg.schedule, "schedule", FlowSchedule)
    method = build(cfg.method, "method", Method)
    _check_method(method, schedule)
    check_arguments(cfg.model, "model")
    check_arguments(cfg.rollout.solve, "rollout.solve")
    prompts = build(cfg.prompts, "prompts", Prompts)
    check_texts(cfg.reward, prompts)
    shares = {key: value for key, value in cfg.training.items() if key != "batch"}
    layout = checked(Layout, **cfg.rollout.layout, **shares, seed=cfg.seed, world_size=world_size)
    return schedule, method, prompts, layout


def _check_method(method: Method, schedule: FlowSchedule) -> None:
    """Raise ConfigError unless the method's parts do on this schedule what the trainer asks of them."""
    if not hasattr(method.plan, "candidates"):
        raise ConfigError(
            f"method.plan: {type(method.plan).__name__} has no candidates(num_steps), see algorithm/plans.py"
        )
    candidate_T = checked(method.plan.candidates, len(schedule))
    if not candidate_T.any():
        raise ConfigError("method.plan: no step may be stochastic, so nothing would be trained")
    checked(check_stochastic, schedule, candidate_T)
    weight_T = checked(method.weigh, schedule)
    usable = (
        weight_T.shape == (len(schedule),)
        and weight_T[candidate_T].isfinite().all()
        and (weight_T[candidate_T] > 0).all()
    )
    if not usable:
        raise ConfigError("method.weigh: must return a positive, finite weight for each step that may be stochastic")
    checked(method.advantage, torch.tensor([[0.0, 1.0]]))


def check_texts(node: Any, prompts: Prompts) -> None:
    """Raise ConfigError if a reward, or one inside it, knows texts of its own only and the prompts are others."""
    if isinstance(node, DictConfig):
        for name in node:
            if not OmegaConf.is_missing(node, name):
                check_texts(node[name], prompts)
        refuse = getattr(located(node._target_, "reward"), "check_texts", None) if "_target_" in node else None
        if refuse:
            try:
                refuse((*prompts.train, *prompts.test))
            except ValueError as error:
                raise ConfigError(f"prompts: the reward {node._target_} does not know them: {error}") from error


def check_arguments(node: DictConfig, key: str) -> None:
    """Raise ConfigError if the node has a key that its target does not take, or lacks one that it needs."""
    names = {str(name) for name in node if not str(name).startswith("_")} | GIVEN_LATER
    parameters = _signature(node._target_, key).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    unknown = sorted(names - GIVEN_LATER - parameters.keys())
    if node.get("_partial_"):  # what has no default is given in each call
        unknown += sorted(names & set(required))
    missing = [name for name in required if name not in names and not node.get("_partial_")]
    if unknown:
        raise ConfigError(f"{key}: {node._target_} takes no {', '.join(unknown)}")
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: must be given")


def _signature(target: str, key: str) -> inspect.Signature:
    try:
        return inspect.signature(located(target, key))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target}: cannot be called") from error


def located(target: str, key: str) -> Any:
    """Return the object that a `_target_` names; ConfigError if there is none."""
    try:
        return pkgutil.resolve_name(target)
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_={target}: there is no object of this name") from error


def prepare_trainer(cfg: DictConfig, ranks: Ranks) -> Trainer:
    """Build the trainer. Whatever can be checked is checked first, cheap things before slow ones; then the model is loaded."""
    torch.set_num_threads(cfg.threads)
    if ranks.is_main and (warning := tiny_sizes(cfg)):
        log.warning(warning)
    parts = planned(cfg, ranks.world_size)
    reward = build(cfg.reward, "reward", Callable)
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
    if isinstance(cause, ValueError | OSError) and "=" in why.partition(":")[0]:  # names its key itself
        return why.replace("schedule.", "evaluation.sampler.schedule.", 1) if key == "evaluation.sampler" else why
    return why if isinstance(cause, ValueError | OSError) else f"{key}: {why}"


def _plain(made: Any) -> Any:
    """Replace Hydra's partial by a plain one: Hydra's checks its target again in every call, which takes half a millisecond."""
    return partial(made.func, *made.args, **made.keywords) if isinstance(made, partial) else made


def checked(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the function; an error about its arguments, or of the file system, becomes a ConfigError."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(str(error)) from error
