"""Find what a run would stumble over on its node before it waits in a queue for days. Needs no GPU and no weights.

A model that has an architecture is made on torch's meta device; the files of models and rewards must be there, but only
their presence is looked at. Parts that many points of a sweep share are tried once.
"""

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.hub import local_folder
from flash_grpo.policies.source import pipeline_folder
from flash_grpo.records.files import read_manifest
from flash_grpo.run import build, manifest

GIVEN_LATER = {"device", "lora"}


def rehearse(cfg: DictConfig, world_size: int) -> None:
    """ConfigError in one line where a run of `cfg` on `world_size` ranks cannot begin. `cfg.hydra` is not looked at."""
    build.check_counts(cfg)
    build.build(cfg.budget, "budget")
    build.build(cfg.evaluation.sampler, "evaluation.sampler")
    _, _, prompts, _ = build.planned(cfg, world_size)
    _rehearse_directory(cfg, prompts)
    _rehearse_reward(OmegaConf.to_yaml(cfg.reward, resolve=True))
    _rehearse_model(OmegaConf.to_yaml(cfg.model, resolve=True), OmegaConf.to_yaml(cfg.optim, resolve=True))


def _rehearse_directory(cfg: DictConfig, prompts: Prompts) -> None:
    directory = Path(str(cfg.runs_root), str(cfg.study), str(cfg.run_name))
    known = read_manifest(directory)
    if known:
        parts = {key: cfg[key] for key in cfg if key != "hydra"}  # which may hold what cannot be resolved yet
        wanted = {
            key: OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
            for key, part in parts.items()
        }
        build.checked(manifest.refuse_another_format, directory, known)
        build.checked(manifest.refuse_another_config, directory, known.config, wanted)
        build.checked(manifest.refuse_other_prompts, directory, known.prompts_hash, prompts)


@lru_cache
def _rehearse_reward(text: str) -> None:
    _look_over(OmegaConf.create(text), "reward")


@lru_cache
def _rehearse_model(model: str, optim: str) -> None:
    node, optim_node = DictConfig(OmegaConf.create(model)), DictConfig(OmegaConf.create(optim))
    _check_arguments(node, "model")
    if node.get("weights") != "random":
        build.checked(pipeline_folder, node.path, node.get("revision"))
    in_place = {"device": "meta", "weights": "random"} if node.get("architecture") else {"device": "cpu"}
    policy = build.build(node, "model", lora=optim_node.lora, **in_place)
    build.build(optim_node.optimizer, "optim.optimizer", params=[torch.nn.Parameter(torch.zeros(1))])
    if not policy.trainable():
        raise build.ConfigError("model: nothing of it would be trained")


def _look_over(node: Any, key: str) -> None:
    """Check that what the node names exists and takes its keys, and that its files are there; nothing is made."""
    if not isinstance(node, DictConfig):
        return
    for name in node:
        if OmegaConf.is_missing(node, name):
            raise build.ConfigError(f"{key}.{name!s}: must be given")
        _look_over(node[name], f"{key}.{name!s}")
    if "_target_" in node:
        _check_arguments(node, key)
    for name in [str(name) for name in node if str(name).endswith("revision")]:
        path = name.removesuffix("revision").rstrip("_") or "path"
        build.checked(local_folder, node[path], node[name], f"{key}.{path}")
    if "instruction" in node:
        build.checked(get_object(node._target_).instruction_of, node.instruction)


def _check_arguments(node: DictConfig, key: str) -> None:
    names = {str(name) for name in node if not str(name).startswith("_")} | GIVEN_LATER
    taken = {one.name: one.default is one.empty for one in _signature(node._target_, key).parameters.values()}
    unknown = sorted(names - GIVEN_LATER - taken.keys())
    missing = [name for name, needed in taken.items() if needed and name not in names and not node.get("_partial_")]
    if unknown:
        raise build.ConfigError(f"{key}: {node._target_} takes no {', '.join(unknown)}")
    if missing:
        raise build.ConfigError(f"{key}.{missing[0]}: must be given")


def _signature(target: str, key: str) -> inspect.Signature:
    try:
        return inspect.signature(get_object(target))
    except (ImportError, AttributeError, ValueError) as error:
        raise build.ConfigError(f"{key}._target_={target}: there is nothing of this name") from error
