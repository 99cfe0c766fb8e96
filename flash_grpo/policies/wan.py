"""Any diffusers Wan text-to-video pipeline as a policy. The tiny world is one more folder in diffusers' own layout."""

import copy
import importlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as transformers_logging

from flash_grpo.policies.lora import add_lora, save_lora, without_lora
from flash_grpo.policies.shard import shard_frozen
from flash_grpo.policies.source import TINY, index_of, pipeline_folder
from flash_grpo.policies.text import RandomConditions, TextConditions
from flash_grpo.policies.vae import WanVideoDecoder

transformers_logging.disable_progress_bar()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = ("pretrained", "random")


class WanPolicy:
    """A Wan transformer with its frozen text encoder and its frozen decoder, see `policies.Policy`.

    path, revision: a folder in diffusers' pipeline layout, or a hub id and its pinned revision, see `source`; "tiny_wan"
    ships with the package. weights: "random" makes a model of `architecture` (WanTransformer3DModel's arguments) without
    any file, for benchmarks. frames, height, width: of the decoded video. guidance: classifier-free guidance scale, 1
    switches it off. max_text_tokens: M. embedding_cache: folder of text embeddings, see `text`.
    dtype: what the transformer computes in; latents, velocities and the decoder are float32 always. Weights that are
    trained stay float32, so that small steps are not lost: the LoRA's, or all of them, which then compute by autocast.
    lora: rank, alpha, targets, init, seed, see `lora`; None trains every weight. gradient_checkpointing: recomputes
    blocks in the backward. attention: a backend of diffusers that has a backward, None is its default. compile: the
    transformer's blocks. tiling, slicing: of the VAE's decoding, see `vae`. shard: the frozen base over the ranks, see
    `shard`.
    """

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
        _one_of("dtype", dtype, DTYPES)
        _one_of("weights", weights, WEIGHTS)
        device, compute = torch.device(device), DTYPES[dtype]
        held = compute if lora else torch.float32
        if weights == "random":
            self.transformer = random_transformer(dict(architecture or {}), held, device)
            self.codec = WanVideoDecoder(_on(device, AutoencoderKLWan), tiling, slicing)
            self.encode = RandomConditions(max_text_tokens, self.transformer.config.text_dim, device, compute)
        else:
            folder = pipeline_folder(path, revision)
            _refuse_two_experts(folder, path)
            self.transformer = _loaded(WanTransformer3DModel, folder, "transformer", held)
            if not shard:  # which takes it to the device part by part
                self.transformer.to(device)
            self.codec = _codec(folder, device, tiling, slicing)
            self.encode = TextConditions(folder, max_text_tokens, device, compute, embedding_cache)
        self.latent_shape = self.codec.latent_shape(frames, height, width)
        self._lora, self._base = dict(lora or {}), None
        self._held, self._compute = held, compute
        self.device, self.guidance, self.negative_prompt = device, guidance, negative_prompt
        self.evaluations_per_velocity = 1 if guidance == 1 else 2
        self.flops_per_forward = (
            _tiny_flops(self)
            if path == TINY
            else forward_flops(self.transformer.config, self.latent_shape, max_text_tokens)
        )
        if lora:
            add_lora(self.transformer, **lora)
        self._tune(gradient_checkpointing, attention, compile)
        if shard and not lora:
            raise ValueError("model.shard=true: only a frozen base is sharded; choose optim=lora")
        self.forwards_together = shard and shard_frozen(self.transformer, device)

    encode: TextConditions | RandomConditions

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
        """Writes these values of `trainable()` for WanPipeline: LoRA weights, or a whole transformer."""
        if self._lora:
            save_lora(folder, parameters, **{key: self._lora[key] for key in ("rank", "alpha", "targets")})
        else:
            self.transformer.load_state_dict(parameters, strict=False)
            self.transformer.save_pretrained(folder / "transformer")

    def _guided(
        self, transformer, x: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor
    ) -> torch.Tensor:
        """Both halves of guidance go through in one batch. `timestep_B` is 1-D: a 2-D one means something else to Wan."""
        timestep_B = timestep_B.to(x.device)
        if self.guidance == 1:
            return self._forward(transformer, x, timestep_B, condition_BMD)
        negative_BMD = self.encode([self.negative_prompt]).expand_as(condition_BMD)
        both = self._forward(
            transformer, x.repeat(2, 1, 1, 1, 1), timestep_B.repeat(2), torch.cat([condition_BMD, negative_BMD])
        )
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _forward(self, transformer, x: torch.Tensor, timestep_B: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        with self._precision():
            return transformer(x.to(self._held), timestep_B, condition.to(self._held), return_dict=False)[0].float()

    def _precision(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self._compute) if self._held != self._compute else nullcontext()

    def _tune(self, gradient_checkpointing: bool, attention: str | None, compile: bool) -> None:
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if attention:
            try:
                self.transformer.set_attention_backend(attention)
            except (ValueError, RuntimeError, ImportError) as error:
                raise ValueError(f"model.attention={attention}: {' '.join(str(error).split())}") from error
            if self.device.type != "meta":
                refuse_without_gradient(
                    attention, self.transformer.config.attention_head_dim, self.device, self._compute
                )
        if compile:
            self.transformer.compile_repeated_blocks()


def refuse_without_gradient(attention: str, width: int, device: torch.device, dtype: torch.dtype) -> None:
    """ValueError where the backend (its enum's value) has no backward: query and key would not be trained, unnoticed."""
    qkv = torch.linspace(-1, 1, 3 * 16 * width, device=device).to(dtype).reshape(3, 1, 16, 1, width).requires_grad_()
    told = ""
    try:
        dispatch_attention_fn(*qkv, backend=AttentionBackendName(attention)).float().square().sum().backward()
    except Exception as error:  # each kernel has its own
        told = f" ({type(error).__name__}: {str(error).strip().splitlines()[0]})" if str(error).strip() else ""
    if qkv.grad is None or not bool(qkv.grad.flatten(1).any(1).all()):
        raise ValueError(f"model.attention={attention}: it gives no gradient here{told}; native does")


def random_transformer(architecture: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """A transformer of this architecture as torch initialises it, in the dtypes that a loaded one has."""
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(**architecture)
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


@torch.no_grad()
def forward_flops(config: Mapping[str, Any], latent_shape: tuple[int, ...], text_tokens: int) -> float:
    """Of one forward of one sample, counted on torch's meta device: no memory, no time, attention included."""
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(config)
        inputs = torch.zeros(1, *latent_shape), torch.zeros(1), torch.zeros(1, text_tokens, config["text_dim"])
    with FlopCounterMode(display=False) as counter, attention_backend("native"):
        transformer(*inputs, return_dict=False)
    return float(counter.get_total_flops())


@torch.no_grad()
def _tiny_flops(policy: WanPolicy) -> float:
    """The count that the tiny world's committed budgets rest on: without attention, which torch's counter does not see on
    a CPU, and with one encoding of the empty text."""
    device = policy.transformer.device
    x, timestep = torch.zeros(1, *policy.latent_shape, device=device), torch.zeros(1, device=device)
    with FlopCounterMode(display=False) as counter:
        policy.transformer(x, timestep, policy.encode([""]).to(device), return_dict=False)
    return float(counter.get_total_flops())


def _codec(folder: Path, device: torch.device, tiling: bool, slicing: bool) -> Any:
    """The decoder, of the class that the pipeline's index names: diffusers' VAE, or one with the same two calls."""
    module, name = index_of(folder)["vae"]
    vae = _loaded(getattr(importlib.import_module(module), name), folder, "vae", torch.float32).to(device)
    return WanVideoDecoder(vae, tiling, slicing) if isinstance(vae, AutoencoderKLWan) else vae


def _loaded(kind: type, folder: Path, part: str, dtype: torch.dtype) -> Any:
    try:
        return kind.from_pretrained(folder, subfolder=part, dtype=dtype)
    except OSError as error:
        raise ValueError(f"{folder}: its {part} cannot be loaded ({' '.join(str(error).split())})") from error


def _refuse_two_experts(folder: Path, path: str) -> None:
    index = index_of(folder)
    if (index.get("transformer_2") or [None])[0] or index.get("expand_timesteps"):
        raise ValueError(
            f"model.path={path}: Wan2.2 (two experts, or timesteps per token) is not supported; use Wan2.1"
        )


def _on(device: torch.device, kind: type) -> Any:
    with torch.device(device):
        return kind()


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"model.{key}={value}: allowed are {', '.join(allowed)}")
