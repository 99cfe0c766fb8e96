"""Find the errors that a run would meet on its node, before it waits in a queue for days. Needs no GPU and no weights.

A model that has an architecture is built on torch's meta device. The files of models and rewards must exist, but are not
read. A model or reward that many runs of a sweep share is tried once.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.hub import local_folder
from flash_grpo.policies.source import Wanted, pipeline_folder
from flash_grpo.records.files import read_manifest
from flash_grpo.run import build, manifest
from flash_grpo.run.progress import Budget
from flash_grpo.run.settings import ConfigError, check
from flash_grpo.run.targets import HELD_OUT, check_arguments, located
from flash_grpo.run.trained_experts import with_trained_experts
from flash_grpo.training.ema import EMA


def rehearse(cfg: DictConfig, world_size: int) -> None:
    """Raise ConfigError, in one line, if a run of `cfg` on `world_size` ranks could not begin. `cfg.hydra` is ignored."""
    check(cfg)
    build.build(cfg.budget, "budget", Budget)
    build.build_evaluation(cfg)
    schedule, method, prompts, _ = build.planned(cfg, world_size)
    _rehearse_directory(cfg, prompts)
    _rehearse_reward(OmegaConf.to_yaml(cfg.reward, resolve=True), "reward")
    if (held_out := OmegaConf.select(cfg, HELD_OUT)) is not None:
        _rehearse_reward(OmegaConf.to_yaml(held_out, resolve=True), HELD_OUT)
    model = with_trained_experts(cfg.model, method, schedule)
    _rehearse_model(OmegaConf.to_yaml(model, resolve=True), OmegaConf.to_yaml(cfg.optim, resolve=True))


def _rehearse_directory(cfg: DictConfig, prompts: Prompts) -> None:
    directory = Path(str(cfg.runs_root), str(cfg.study), str(cfg.run_name))
    earlier = build.checked(read_manifest, directory)
    if earlier:
        parts = {key: cfg[key] for key in cfg if key != "hydra"}  # cfg.hydra may not be resolvable yet
        wanted = {
            key: OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
            for key, part in parts.items()
        }
        build.checked(manifest.refuse_another_run, directory, earlier, wanted, prompts)


@lru_cache
def _rehearse_reward(text: str, key: str) -> None:
    _look_over(OmegaConf.create(text), key)


@lru_cache
def _rehearse_model(model: str, optim: str) -> None:
    node, optim_node = DictConfig(OmegaConf.create(model)), DictConfig(OmegaConf.create(optim))
    if "path" in node and node.get("weights") != "random":  # a model of one's own may need no files
        wanted = Wanted(**{key: node[key] for key in ("boundary", "split", "expand_timesteps") if key in node})
        build.checked(pipeline_folder, node.path, node.get("revision"), wanted)
    in_place = {"device": "meta", "weights": "random"} if node.get("architecture") else {"device": "cpu"}
    policy = build.build(node, "model", lora=optim_node.lora, **in_place)
    build.optimizer(optim_node.optimizer, [torch.nn.Parameter(torch.zeros(1))])
    build.checked(EMA, {}, **optim_node.ema)
    if not policy.trainable():
        raise ConfigError("model: it has no weights that would be trained")


def _look_over(node: Any, key: str) -> None:
    """Check that the node's target exists and takes its keys, and that its files are there, without building anything."""
    if not isinstance(node, DictConfig):
        return
    for name in node:
        if OmegaConf.is_missing(node, name):
            raise ConfigError(f"{key}.{name!s}: must be given")
        _look_over(node[name], f"{key}.{name!s}")
    if "_target_" in node:
        check_arguments(node, key)
    for name in [str(name) for name in node if str(name).endswith("revision")]:
        path = name.removesuffix("revision").rstrip("_") or "path"
        build.checked(local_folder, node[path], node[name], f"{key}.{path}")
    if "instruction" in node:
        build.checked(located(node._target_, key).instruction_of, node.instruction)
