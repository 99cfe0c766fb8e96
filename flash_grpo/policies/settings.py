"""Hold the settings of a Wan policy, and refuse values that do not fit together before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.experts import ONE, Experts, high_and_low
from flash_grpo.policies.precision import Precision, precision_of
from flash_grpo.policies.source import Wanted

WEIGHTS = ("pretrained", "random")
LONGEST_TEXT = 512  # tokens; what Wan was trained with, and WanPipeline's own length
EXPERTS = ("transformer", "transformer_2")  # diffusers' names, for high noise and for low


@dataclass(frozen=True, kw_only=True)
class WanSettings:
    """What a Wan policy is made of. ValueError, in one line, for values that are out of range or do not fit together.

    path, revision: a folder in diffusers' pipeline layout, or a hub id and its pinned revision, see `source`; "tiny_wan"
    and "scenes_wan" ship with the package. weights: "pretrained", or "random" for a model of `architecture` and `vae`
    (WanTransformer3DModel's and AutoencoderKLWan's arguments) without any file, for benchmarks. frames, height, width: of
    the decoded video, in pixels. guidance: classifier-free guidance scale; 1 switches it off and halves the cost.
    max_text_tokens: M, at most 512. embedding_cache: folder of text embeddings, see `text`.
    boundary: the share of timesteps from which on the first transformer computes, of high noise; below it the second does,
    `transformer_2`. None is a model of one. guidance_2: of the second; None is `guidance`. split: begin both as copies of a
    folder's only transformer. experts: names of those that are trained; the others stay as they are. None is all here, and
    those that the method's steps reach in a run. expand_timesteps: the model takes a timestep for each token.
    dtype: what the transformer computes in; latents, velocities and the decoder are always float32. Trained weights stay
    float32, so that small steps are not lost: those of the LoRA, or all of them, which then compute by autocast.
    lora: rank, alpha, targets, init, seed, see `lora`; None trains every weight. gradient_checkpointing: compute blocks
    again in the backward, to save memory. attention: one of diffusers' backends that has a backward; None is its default.
    compile: compile the transformer's blocks. tiling, slicing: of the VAE's decoding, see `vae`. shard: shard the frozen
    base over the ranks, see `shard`.
    """

    path: str
    frames: int
    height: int
    width: int
    guidance: float
    negative_prompt: str = ""
    max_text_tokens: int
    device: torch.device
    revision: str | None = None
    weights: str = "pretrained"
    architecture: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] | None = None
    embedding_cache: str | None = None
    boundary: float | None = None
    guidance_2: float | None = None
    split: bool = False
    experts: Sequence[str] | None = None
    expand_timesteps: bool = False
    dtype: str = "float32"
    lora: Mapping[str, Any] | None = None
    gradient_checkpointing: bool = False
    attention: str | None = None
    compile: bool = False
    tiling: bool = False
    slicing: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        ranges.text("model.path", self.path)
        ranges.one_of("model.weights", self.weights, WEIGHTS)
        ranges.text("model.negative_prompt", self.negative_prompt, empty=True)
        for name in ("frames", "height", "width"):
            ranges.whole(f"model.{name}", getattr(self, name))
        ranges.whole("model.max_text_tokens", self.max_text_tokens, at_most=LONGEST_TEXT)
        for name in ("architecture", "vae"):
            ranges.section(f"model.{name}", getattr(self, name), null=True)
        _ = self.precision  # refuses what `dtype` may not be
        if self.shard and not self.lora:
            raise ValueError("model.shard=true: only a frozen base is sharded; choose optim=lora")
        guidance_scales(self.guidance, self.guidance_2, self.boundary)
        _refuse_experts(self.boundary, self.split, self.experts)

    @property
    def scales(self) -> dict[str, float]:
        """Return each expert's guidance scale."""
        return guidance_scales(self.guidance, self.guidance_2, self.boundary)

    @property
    def transformers(self) -> Experts:
        """Return which transformers the policy has."""
        return ONE if self.boundary is None else high_and_low(self.boundary)

    @property
    def wanted(self) -> Wanted:
        return Wanted(boundary=self.boundary, split=self.split, expand_timesteps=self.expand_timesteps)

    @property
    def precision(self) -> Precision:
        return precision_of(self.dtype, torch.device(self.device), frozen=bool(self.lora))


def guidance_scales(guidance: float, guidance_2: float | None, boundary: float | None) -> dict[str, float]:
    """Return each expert's guidance scale; ValueError for values that are out of range or do not fit together."""
    ranges.number("model.guidance", guidance, at_least=1, at_most=100)
    ranges.number("model.guidance_2", guidance_2, at_least=1, at_most=100, null=True)
    if guidance_2 is not None and boundary is None:
        raise ValueError(f"model.guidance_2={guidance_2}: the model has one transformer; leave it null")
    second = guidance if guidance_2 is None else guidance_2
    if (guidance == 1) != (second == 1):
        raise ValueError(
            f"model.guidance={guidance}, guidance_2={second}: WanPipeline guides both transformers or none; set both to 1 or "
            "neither"
        )
    return dict(zip(EXPERTS, (guidance, second), strict=True))


def _refuse_experts(boundary: float | None, split: bool, experts: Sequence[str] | None) -> None:
    """Raise ValueError for settings of several transformers that do not fit together."""
    ranges.number("model.boundary", boundary, above=0, below=1, null=True)
    ranges.truth("model.split", split)
    if experts is not None:
        ranges.some_of("model.experts", experts, EXPERTS)
    if boundary is None and (split or experts is not None):
        name = "split=true" if split else f"experts={ranges.shown(experts)}"
        raise ValueError(f"model.{name}: the model has one transformer; give model.boundary, or leave it out")
