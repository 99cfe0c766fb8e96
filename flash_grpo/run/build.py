"""Build a run's objects from its configuration, and refuse what does not fit together."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.batches import Layout, Prompts
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.paths import Path
from flash_grpo.algorithm.protocols import Policy, Reward, score_flops
from flash_grpo.algorithm.scoring import CheckedReward
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.policies.source import INDEX, differences, found
from flash_grpo.records.identity import AT_ONCE
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run.guard import check_guards
from flash_grpo.run.guidance import check_guidance, guided, is_off_policy
from flash_grpo.run.heap import keep_freed_memory
from flash_grpo.run.making import build, checked
from flash_grpo.run.settings import ConfigError
from flash_grpo.run.targets import (
    HELD_OUT,
    check_arguments,
    check_held_out,
    check_method,
    check_path,
    check_reward,
    check_solver,
    check_texts,
    check_train_fraction,
    check_tree,
)
from flash_grpo.run.trained_experts import say_who_is_trained, with_trained_experts
from flash_grpo.training.anneal import Anneal
from flash_grpo.training.ema import EMA
from flash_grpo.training.evaluation import Evaluation
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.replay import Replayer
from flash_grpo.training.rollouts import RolloutMaker
from flash_grpo.training.stepper import Stepper
from flash_grpo.training.trainer import Trainer
from flash_grpo.training.update import Updater

log = logging.getLogger(__name__)


def planned(cfg: DictConfig, world_size: int) -> tuple[FlowSchedule, Method, Prompts, Layout]:
    """Build everything that is not a model: schedule, method, prompts, layout. ConfigError if they do not fit together."""
    schedule, method, layout = designed(cfg, world_size)
    check_arguments(cfg.reward, "reward")
    check_arguments(cfg.model, "model")
    check_guidance(cfg)
    with_trained_experts(cfg.model, method, schedule)
    prompts = build(cfg.prompts, "prompts", Prompts)
    check_texts(cfg.reward, prompts)
    check_held_out(OmegaConf.select(cfg, HELD_OUT), cfg.reward, prompts)
    check_guards(cfg, prompts)
    return schedule, method, prompts, layout


def designed(cfg: DictConfig, world_size: int) -> tuple[FlowSchedule, Method, Layout]:
    """Build what decides how much is computed: schedule, method, layout; no file is read. ConfigError as `planned`."""
    schedule = build(cfg.schedule, "schedule", FlowSchedule)
    check_arguments(cfg.method.plan, "method.plan")
    method = build(cfg.method, "method", Method)
    check_method(method, schedule)
    check_train_fraction(cfg.rollout.train_fraction, method)
    check_arguments(cfg.rollout.solve, "rollout.solve")
    check_solver(build(cfg.rollout.solve, "rollout.solve", Callable), schedule)
    shares = {key: value for key, value in cfg.training.items() if key not in ("batch", "guidance")}
    layout = checked(Layout, **cfg.rollout.layout, **shares, seed=cfg.seed, world_size=world_size)
    check_tree(method, layout, len(schedule))
    check_path(build(cfg.rollout.path, "rollout.path", Path), method, layout, len(schedule))
    return schedule, method, layout


def prepare_trainer(cfg: DictConfig, ranks: Ranks) -> Trainer:
    """Build the trainer. Whatever can be checked is checked first, cheap things before slow ones; then the model is loaded."""
    torch.set_num_threads(cfg.threads)
    if ranks.device.type == "cpu":
        keep_freed_memory()
    if ranks.is_main and (warning := tiny_sizes(cfg)):
        log.warning(warning)
    parts = planned(cfg, ranks.world_size)
    schedule, method, *_ = parts
    reward = build_reward(cfg.reward)
    model = with_trained_experts(cfg.model, method, schedule)
    if ranks.is_main:
        say_who_is_trained(model)
        for difference in folder_differences(cfg):
            log.warning(difference)
    policy = build(model, "model", Policy, device=ranks.device, lora=cfg.optim.lora)
    policy.keep_base()
    return wired(cfg, ranks, policy, reward, parts)


Planned = tuple[FlowSchedule, Method, Prompts, Layout]


def wired(cfg: DictConfig, ranks: Ranks, policy: Policy, reward: Reward, parts: Planned) -> Trainer:
    """Connect policy, reward and the planned parts to a trainer. parts: as returned by `planned`."""
    schedule, method, prompts, layout = parts
    flops = replace(policy.flops, score=score_flops(reward, _video_shape(cfg), _median_text(prompts)))
    meter, journal = Meter(ranks, flops), Journal(ranks, policy.forwards_together)
    rollouts = RolloutMaker(
        policy=guided(policy, cfg, "rollout"),
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
    return Trainer(
        prompts=prompts,
        layout=layout,
        rollouts=rollouts,
        updater=_updater(cfg, ranks, policy, layout, rollouts),
        ranks=ranks,
        meter=meter,
        journal=journal,
        seed=cfg.seed,
    )


def _updater(cfg: DictConfig, ranks: Ranks, policy: Policy, layout: Layout, rollouts: RolloutMaker) -> Updater:
    """Make what trains on the rollouts; both share policy, method, meter and journal."""
    replayer = Replayer(
        policy=guided(policy, cfg, "training"),
        method=rollouts.method,
        schedule=rollouts.schedule,
        meter=rollouts.meter,
        off_policy=is_off_policy(cfg),
    )
    return Updater(
        replayer=replayer,
        stepper=_stepper(cfg, ranks, policy, rollouts.meter),
        layout=layout,
        ranks=ranks,
        journal=rollouts.journal,
        at_once=cfg.training.batch,
        train_fraction=cfg.rollout.train_fraction,
        seed=cfg.seed,
    )


def _stepper(cfg: DictConfig, ranks: Ranks, policy: Policy, meter: Meter) -> Stepper:
    return Stepper(
        policy=policy,
        optimizer=optimizer(cfg.optim.optimizer, list(policy.trainable().values())),
        ema=checked(EMA, policy.trainable(), **cfg.optim.ema),
        ranks=ranks,
        meter=meter,
        max_gradient_norm=math.inf if cfg.optim.max_gradient_norm is None else cfg.optim.max_gradient_norm,
        anneal=build(cfg.optim.anneal, "optim.anneal", Anneal),
    )


def folder_differences(cfg: DictConfig) -> list[str]:
    """Return, a line each, what the model's folder says of a pipeline and the run does otherwise: shift, boundary."""
    if "path" not in cfg.model or cfg.model.get("weights") == "random":
        return []
    keys = ("schedule.shift", "evaluation.sampler.schedule.shift")
    shifts = {key: shift for key in keys if (shift := OmegaConf.select(cfg, key)) is not None}
    folder = checked(found, cfg.model.path, cfg.model.get("revision"))
    return checked(differences, folder, cfg.model.get("boundary"), shifts) if (folder / INDEX).is_file() else []


def build_reward(node: DictConfig, key: str = "reward") -> Reward:
    """Build a reward; ConfigError as in `build`, and for one that does not take videos and texts."""
    reward: Reward = build(node, key, Callable)
    check_reward(reward, key)
    return reward


def build_held_out(cfg: DictConfig) -> CheckedReward | None:
    """Build the reward that evaluation alone asks; None if the configuration has none."""
    node = OmegaConf.select(cfg, HELD_OUT)
    return None if node is None else CheckedReward(build_reward(node, HELD_OUT))


def build_evaluation(cfg: DictConfig) -> Evaluation:
    """Build what evaluates the run; ConfigError as in `build`."""
    evaluation: Evaluation = build(cfg.evaluation.sampler, "evaluation.sampler", Evaluation)
    check_solver(evaluation.solve, evaluation.schedule, "evaluation.sampler.solve")
    return evaluation


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
