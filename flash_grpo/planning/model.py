"""Describe the model that a configuration trains, in numbers: sizes, FLOPs, what is trained. Reads no weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.types import UnitFlops
from flash_grpo.planning import decoder
from flash_grpo.planning.decoder import Decoder
from flash_grpo.planning.wan import Adapters, Wan, wan
from flash_grpo.policies.settings import WanSettings
from flash_grpo.policies.source import pipeline_folder
from flash_grpo.run import build
from flash_grpo.run.guidance import guidance_of
from flash_grpo.run.settings import PHASES
from flash_grpo.run.trained_experts import with_trained_experts

WAN_POLICY = "flash_grpo.policies.wan.WanPolicy"
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model in numbers. name: of its configuration. wan, decoder: None of a model of one's own, whose memory nobody knows.

    latent_shape: (C, F, H, W). video_shape: (F, H, W, 3). trainable: how many numbers are trained. compute: bytes of a number
    in a forward. sharded: whether the frozen base is spread over the ranks. real: whether its weights must be fetched.
    evaluations_per_velocity: of a rollout; training and evaluation may have another guidance. experts: how many transformers
    it has. base_copied: whether trained weights are kept as they began. token_timesteps: whether each token has its own.
    """

    name: str
    path: str
    latent_shape: tuple[int, ...]
    video_shape: tuple[int, ...]
    evaluations_per_velocity: int
    training_evaluations: int
    evaluation_evaluations: int
    flops: UnitFlops
    trainable: int
    text_tokens: int = 0
    wan: Wan | None = None
    decoder: Decoder | None = None
    lora: Adapters | None = None
    compute: int = 4
    checkpointing: bool = False
    slicing: bool = False
    tiling: bool = False
    sharded: bool = False
    real: bool = False
    text_cached: bool = False
    attention: str | None = None
    compiled: bool = False
    experts: int = 1
    base_copied: bool = False
    token_timesteps: bool = False

    @property
    def tokens(self) -> int:
        """Return the transformer's tokens of one video; 0 where nobody knows."""
        return self.wan.tokens(self.latent_shape) if self.wan else 0

    @property
    def latent_numbers(self) -> int:
        return prod(self.latent_shape)


def model_of(cfg: DictConfig, name: str) -> Model:
    """Describe the model of a configuration; ConfigError if its sizes do not fit, or a model of one's own cannot be made.

    name: of the chosen option of the group `model`.
    """
    if cfg.model.get("_target_") != WAN_POLICY:
        return _own(cfg, name)
    return build.checked(_wan, cfg, name)


def _wan(cfg: DictConfig, name: str) -> Model:
    node, settings = cfg.model, settings_of(cfg)
    lora = _adapters(cfg.optim.lora)
    real = bool(node.get("architecture"))
    folder = None if real else pipeline_folder(settings.path, settings.revision, settings.wanted)
    sizes = wan(node.architecture if folder is None else _config(folder, "transformer"))
    coder = _real_decoder(node) if folder is None else _decoder(_config(folder, "vae"))
    latent_shape = coder.latent_shape(sizes.in_channels, node.frames, node.height, node.width)
    text_tokens, checkpointing = node.max_text_tokens, bool(node.get("gradient_checkpointing"))
    token_timesteps = bool(node.get("expand_timesteps"))
    flops = sizes.flops(sizes.tokens(latent_shape), text_tokens, lora, checkpointing, token_timesteps)
    of_one, trained = sizes.adapter_parameters(lora) if lora else sizes.parameters(), _trained_experts(cfg)
    rollout, training, evaluation = (1 if guidance_of(cfg, phase) == 1 else 2 for phase in PHASES)
    return Model(
        name=name,
        path=str(node.path),
        latent_shape=latent_shape,
        video_shape=coder.video_shape(latent_shape),
        evaluations_per_velocity=rollout,
        training_evaluations=training,
        evaluation_evaluations=evaluation,
        flops=UnitFlops(**vars(flops) | {"decode": coder.flops(latent_shape)}),
        trainable=trained * of_one,
        text_tokens=text_tokens,
        wan=sizes,
        decoder=coder,
        lora=lora,
        compute=BYTES[node.get("dtype", "float32")],
        checkpointing=checkpointing,
        slicing=bool(node.get("slicing")),
        tiling=bool(node.get("tiling")),
        sharded=bool(node.get("shard")),
        real=real,
        text_cached=bool(node.get("embedding_cache")),
        attention=node.get("attention"),
        compiled=bool(node.get("compile")),
        experts=1 if node.get("boundary") is None else 2,
        base_copied=not lora or cfg.optim.lora.get("kl_base") == "init_from",
        token_timesteps=token_timesteps,
    )


def settings_of(cfg: DictConfig) -> WanSettings:
    """Return the settings of the configuration's Wan policy; ValueError for what it refuses before it loads anything."""
    given = {str(key): cfg.model[key] for key in cfg.model if key != "_target_"}
    return WanSettings(**given, device=torch.device("cpu"), lora=cfg.optim.lora)


def _trained_experts(cfg: DictConfig) -> int:
    """Return how many of the model's transformers the method's steps reach."""
    if cfg.model.get("boundary") is None:
        return 1
    schedule, method = build.build(cfg.schedule, "schedule"), build.build(cfg.method, "method")
    return len(with_trained_experts(cfg.model, method, schedule).experts)


def _real_decoder(node: DictConfig) -> Decoder:
    """Return the decoder of a real model: Wan2.1's, or that of Wan2.2-TI2V-5B where the configuration describes one."""
    return decoder.WAN_5B if (node.get("vae") or {}).get("is_residual") else decoder.WAN


def _own(cfg: DictConfig, name: str) -> Model:
    """Describe a model of one's own, which is made as a rehearsal makes it: only it knows its sizes."""
    policy: Any = build.build(cfg.model, "model", device="cpu", lora=cfg.optim.lora)
    return Model(
        name=name,
        path=str(cfg.model._target_),
        latent_shape=tuple(policy.latent_shape),
        video_shape=(cfg.model.frames, cfg.model.height, cfg.model.width, 3),
        evaluations_per_velocity=policy.evaluations_per_velocity,
        training_evaluations=policy.evaluations_per_velocity,
        evaluation_evaluations=policy.evaluations_per_velocity,
        flops=policy.flops,
        trainable=sum(parameter.numel() for parameter in policy.trainable().values()),
    )


def _adapters(lora: DictConfig | None) -> Adapters | None:
    if lora is None:
        return None
    ranges.whole("optim.lora.rank", lora.get("rank"), at_most=4096)
    ranges.some_of("optim.lora.targets", lora.get("targets"))
    return Adapters(rank=lora.rank, targets=tuple(lora.targets))


def _config(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / part / "config.json").read_text())


def _decoder(config: Mapping[str, Any]) -> Decoder:
    """Return the decoder that a pipeline's own configuration names: Wan's VAE, or the tiny world's linear codec."""
    if config["_class_name"] == "AutoencoderKLWan":
        return decoder.WAN_5B if config.get("is_residual") else decoder.WAN
    patch, frames, channels = config["patch_size"], config["patch_frames"], config["latent_channels"]
    pixels = 3 * patch**2 * (1 + frames)
    return Decoder(parameters=pixels * (1 + 2 * channels), temporal=frames, spatial=patch)
