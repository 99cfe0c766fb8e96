"""Train any diffusers Wan text-to-video pipeline. The tiny world is one more folder in diffusers' own layout."""

import copy
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers.utils import logging as transformers_logging

from flash_grpo.policies.expert import Expert
from flash_grpo.policies.flops import unit_flops
from flash_grpo.policies.loading import Loader, Transformers
from flash_grpo.policies.settings import WanSettings
from flash_grpo.policies.shard import shard_frozen
from flash_grpo.policies.text import RandomConditions, TextConditions
from flash_grpo.policies.tuning import tune

transformers_logging.disable_progress_bar()


class WanPolicy:
    """A Wan transformer, or two, with a frozen text encoder and a frozen decoder, see `algorithm.protocols.Policy`.

    settings: the fields of `WanSettings`, which documents them.
    """

    __signature__ = inspect.signature(WanSettings)  # the keys that a configuration may give

    encode: TextConditions | RandomConditions

    def __init__(self, **settings: Any):
        chosen = WanSettings(**settings)
        self.device, self.negative_prompt = torch.device(chosen.device), chosen.negative_prompt
        self.guidance, self._scales = chosen.guidance, chosen.scales
        self.evaluations_per_velocity = _evaluations(chosen.guidance)
        self.experts = chosen.transformers
        loaded, self.codec, self.encode = _parts(chosen)
        self.latent_shape = self.codec.latent_shape(chosen.frames, chosen.height, chosen.width)
        sizes, one = (self.codec, self.latent_shape, chosen.max_text_tokens), loaded["transformer"]
        self.flops = unit_flops(one, *sizes, chosen.lora, chosen.gradient_checkpointing, chosen.expand_timesteps)
        self._experts = {name: _expert(name, transformer, chosen) for name, transformer in loaded.items()}
        sharded = [shard_frozen(one, self.device) for one in loaded.values()] if chosen.shard else []
        self.forwards_together = any(sharded)

    @property
    def transformers(self) -> dict[str, WanTransformer3DModel]:
        """Return the transformers by name, high noise first."""
        return {name: expert.transformer for name, expert in self._experts.items()}

    @property
    def transformer(self) -> WanTransformer3DModel:
        """Return the only transformer, or that of high noise."""
        return self._experts["transformer"].transformer

    def prefetch(self, texts: Iterable[str]) -> None:
        self.encode.prefetch([*texts, self.negative_prompt])

    def velocity(self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor) -> torch.Tensor:
        name = self._name(timestep_B)
        inputs = x_BCFHW, timestep_B, condition_BMD, self._scales[name], self._negative()
        return self._experts[name].velocity(*inputs)

    def base_velocity(
        self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor
    ) -> torch.Tensor:
        name = self._name(timestep_B)
        inputs = x_BCFHW, timestep_B, condition_BMD, self._scales[name], self._negative()
        return self._experts[name].base_velocity(*inputs)

    def with_guidance(self, guidance: float) -> "WanPolicy":
        """Return the same policy, all weights and the base shared, with another guidance scale, one for all its experts."""
        other = copy.copy(self)
        other.guidance, other.evaluations_per_velocity = guidance, _evaluations(guidance)
        other._scales = dict.fromkeys(self._scales, guidance)
        return other

    def keep_base(self) -> None:
        for expert in self._experts.values():
            expert.keep_base()

    @torch.no_grad()
    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        video = self.codec.decode(latent_BCFHW)
        return (video.clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        experts = self._experts.values()
        return {name: parameter for expert in experts for name, parameter in expert.trainable().items()}

    def export(self, folder: Path, parameters: dict[str, torch.Tensor]) -> None:
        """Write these values of `trainable()` for WanPipeline: each trained expert's LoRA weights, or its whole transformer."""
        for name, expert in self._experts.items():
            if mine := expert.own(parameters):
                expert.export(folder, name, mine)

    def _name(self, timestep_B: torch.Tensor) -> str:
        """Return the name of the expert of a call, all of whose timesteps are of one."""
        return self.experts.names[int(self.experts.of(timestep_B[0]))]

    def _negative(self) -> torch.Tensor | None:
        """Return the negative prompt's condition [1, M, D]; None without guidance."""
        return None if self.evaluations_per_velocity == 1 else self.encode([self.negative_prompt])


def _parts(settings: WanSettings) -> tuple[Transformers, Any, TextConditions | RandomConditions]:
    """Load or make the transformers, by name, the decoder and the text conditions."""
    loader = Loader(
        names=settings.transformers.names,
        wanted=settings.wanted,
        device=torch.device(settings.device),
        precision=settings.precision,
        max_text_tokens=settings.max_text_tokens,
        tiling=settings.tiling,
        slicing=settings.slicing,
    )
    if settings.weights == "random":
        return loader.random(settings.architecture or {}, settings.vae or {})
    return loader.pretrained(settings.path, settings.revision, settings.embedding_cache)


def _expert(name: str, transformer: WanTransformer3DModel, settings: WanSettings) -> Expert:
    """Make an expert of a loaded transformer, on its device unless `shard_frozen` is to move it there block by block."""
    device, precision = torch.device(settings.device), settings.precision
    expert = Expert(
        transformer=transformer if settings.shard else transformer.to(device),
        precision=precision,
        prefix=f"{name}." if len(settings.transformers) > 1 else "",
        lora=settings.lora,
        trained=settings.experts is None or name in settings.experts,
        token_timesteps=settings.expand_timesteps,
    )
    checkpointing, attention = settings.gradient_checkpointing, settings.attention
    tune(transformer, device, precision.compute, checkpointing, attention, settings.compile)
    return expert


def _evaluations(guidance: float) -> int:
    """Return the transformer forwards of one velocity."""
    return 1 if guidance == 1 else 2
