"""Train any diffusers Wan text-to-video pipeline. The tiny world is one more folder in diffusers' own layout."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers.utils import logging as transformers_logging

from flash_grpo.algorithm import ranges
from flash_grpo.policies.flops import unit_flops
from flash_grpo.policies.loading import Loader
from flash_grpo.policies.lora import add_lora, save_lora, without_lora
from flash_grpo.policies.precision import precision_of
from flash_grpo.policies.shard import shard_frozen
from flash_grpo.policies.text import RandomConditions, TextConditions
from flash_grpo.policies.tuning import tune

transformers_logging.disable_progress_bar()

WEIGHTS = ("pretrained", "random")


class WanPolicy:
    """A Wan transformer with its frozen text encoder and its frozen decoder, see `algorithm.protocols.Policy`.

    path, revision: a folder in diffusers' pipeline layout, or a hub id and its pinned revision, see `source`; "tiny_wan"
    ships with the package. weights: "pretrained", or "random" for a model of `architecture` (WanTransformer3DModel's
    arguments) without any file, for benchmarks. frames, height, width: of the decoded video, in pixels. guidance:
    classifier-free guidance scale; 1 switches it off and halves the cost. max_text_tokens: M. embedding_cache: folder of
    text embeddings, see `text`.
    dtype: what the transformer computes in; latents, velocities and the decoder are always float32. Trained weights stay
    float32, so that small steps are not lost: those of the LoRA, or all of them, which then compute by autocast.
    lora: rank, alpha, targets, init, seed, see `lora`; None trains every weight. gradient_checkpointing: compute blocks
    again in the backward, to save memory. attention: one of diffusers' backends that has a backward; None is its default.
    compile: compile the transformer's blocks. tiling, slicing: of the VAE's decoding, see `vae`. shard: shard the frozen
    base over the ranks, see `shard`.
    """

    encode: TextConditions | RandomConditions

    def __init__(
        self,
        *,
        path: str,
        frames: int,
        height: int,
        width: int,
        guidance: float,
        negative_prompt: str = "",
        max_text_tokens: int,
        device: torch.device,
        revision: str | None = None,
        weights: str = "pretrained",
        architecture: Mapping[str, Any] | None = None,
        embedding_cache: str | None = None,
        dtype: str = "float32",
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        attention: str | None = None,
        compile: bool = False,
        tiling: bool = False,
        slicing: bool = False,
        shard: bool = False,
    ):
        ranges.text("model.path", path)
        _refuse(weights, shard, lora, guidance, negative_prompt, (frames, height, width, max_text_tokens))
        self.device, self.guidance, self.negative_prompt = torch.device(device), guidance, negative_prompt
        self.evaluations_per_velocity = 1 if guidance == 1 else 2
        self._lora, self._base = dict(lora or {}), None
        self._precision = precision_of(dtype, self.device, frozen=bool(lora))
        loader = Loader(self.device, self._precision, max_text_tokens, tiling=tiling, slicing=slicing)
        self.transformer, self.codec, self.encode = loader.load(weights, path, revision, architecture, embedding_cache)
        if not shard:  # `shard_frozen` moves it block by block
            self.transformer.to(self.device)
        self.latent_shape = self.codec.latent_shape(frames, height, width)
        shape, tokens = self.latent_shape, max_text_tokens
        self.flops = unit_flops(self.transformer, self.codec, shape, tokens, lora, gradient_checkpointing)
        if self._lora:
            add_lora(self.transformer, **self._lora)
        tune(self.transformer, self.device, self._precision.compute, gradient_checkpointing, attention, compile)
        self.forwards_together = shard and shard_frozen(self.transformer, self.device)

    def prefetch(self, texts: Iterable[str]) -> None:
        self.encode.prefetch([*texts, self.negative_prompt])

    def velocity(self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor) -> torch.Tensor:
        return self._guided(self.transformer, x_BCFHW, timestep_B, condition_BMD)

    @torch.no_grad()
    def base_velocity(
        self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor
    ) -> torch.Tensor:
        if not self._lora:
            return self._guided(self._base, x_BCFHW, timestep_B, condition_BMD)
        with without_lora(self.transformer):
            return self._guided(self.transformer, x_BCFHW, timestep_B, condition_BMD)

    def keep_base(self) -> None:
        if not self._lora:
            self._base = copy.deepcopy(self.transformer).requires_grad_(False)

    @torch.no_grad()
    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        video = self.codec.decode(latent_BCFHW)
        return (video.clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.transformer.named_parameters() if parameter.requires_grad}

    def export(self, folder: Path, parameters: dict[str, torch.Tensor]) -> None:
        """Write these values of `trainable()` for WanPipeline: LoRA weights, or a whole transformer."""
        if self._lora:
            save_lora(folder, parameters, **{key: self._lora[key] for key in ("rank", "alpha", "targets")})
        else:
            self.transformer.load_state_dict(parameters, strict=False)
            self.transformer.save_pretrained(folder / "transformer")

    def _guided(
        self,
        transformer: WanTransformer3DModel,
        x_BCFHW: torch.Tensor,
        timestep_B: torch.Tensor,
        condition_BMD: torch.Tensor,
    ) -> torch.Tensor:
        """Return the velocity with guidance, whose two halves share one forward."""
        if self.guidance == 1:
            return self._precision.forward(transformer, x_BCFHW, timestep_B, condition_BMD)
        negative_BMD = self.encode([self.negative_prompt]).expand_as(condition_BMD)
        both = torch.cat([condition_BMD, negative_BMD])
        velocity = self._precision.forward(transformer, x_BCFHW.repeat(2, 1, 1, 1, 1), timestep_B.repeat(2), both)
        conditional, unconditional = velocity.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


def _refuse(
    weights: str,
    shard: bool,
    lora: Mapping[str, Any] | None,
    guidance: float,
    negative_prompt: str,
    sizes: tuple[int, ...],
) -> None:
    """Raise ValueError for values that do not fit together, before anything is loaded."""
    ranges.one_of("model.weights", weights, WEIGHTS)
    ranges.number("model.guidance", guidance, at_least=1, at_most=100)
    ranges.text("model.negative_prompt", negative_prompt, empty=True)
    for name, size in zip(("frames", "height", "width", "max_text_tokens"), sizes, strict=True):
        ranges.whole(f"model.{name}", size)
    if shard and not lora:
        raise ValueError("model.shard=true: only a frozen base is sharded; choose optim=lora")
