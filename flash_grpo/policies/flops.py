"""Count the FLOPs of Wan's transformer and decoder on torch's meta device, which takes neither memory nor time."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from torch.utils.flop_counter import FlopCounterMode

from flash_grpo.algorithm.types import UnitFlops
from flash_grpo.policies.lora import add_lora
from flash_grpo.policies.vae import WanVideoDecoder

Passes = tuple[float, float, float]  # forward, backward, recompute


def unit_flops(
    transformer: WanTransformer3DModel,
    codec: Any,
    latent_shape: tuple[int, ...],
    text_tokens: int,
    lora: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    token_timesteps: bool = False,
) -> UnitFlops:
    """Return the FLOPs of each kind of work on one sample.

    transformer: before adapters are added; only its configuration is read. codec: the decoder, `WanVideoDecoder` or one with
    its two calls. latent_shape: (C, F, H, W). lora: the adapters' settings, see `lora.add_lora`; None trains every weight.
    token_timesteps: whether each token has a timestep of its own. A transformer's blocks are alike, so one of one block and
    one of two are counted.
    """
    config = transformer.config
    tokens = prod(size // patch for size, patch in zip(latent_shape[1:], config["patch_size"], strict=True))
    sizes = (1, *latent_shape), (1, tokens) if token_timesteps else (1,), (1, text_tokens, config["text_dim"])
    one, two = (_passes({**config, "num_layers": layers}, sizes, lora, gradient_checkpointing) for layers in (1, 2))
    blocks = config["num_layers"] - 1
    forward, backward, recompute = (first + blocks * (second - first) for first, second in zip(one, two, strict=True))
    return UnitFlops(forward=forward, backward=backward, recompute=recompute, decode=decode_flops(codec, latent_shape))


def decode_flops(codec: Any, latent_shape: tuple[int, ...]) -> float:
    """Return the FLOPs of decoding one video, in one tile. From the second latent frame on, all frames cost alike."""
    vae = codec.vae if isinstance(codec, WanVideoDecoder) else codec
    with torch.device("meta"):
        blank = type(vae).from_config(vae.config)
    decoder = WanVideoDecoder(blank) if isinstance(blank, AutoencoderKLWan) else blank
    channels, frames, height, width = latent_shape

    def counted(count: int) -> float:
        latent = torch.zeros(1, channels, count, height, width, device="meta")
        return _counted(lambda: decoder.decode(latent))

    if frames <= 3:
        return counted(frames)
    two, three = counted(2), counted(3)
    return two + (frames - 2) * (three - two)


@torch.enable_grad()
def _passes(
    config: Mapping[str, Any],
    sizes: tuple[tuple[int, ...], ...],
    lora: Mapping[str, Any] | None,
    gradient_checkpointing: bool,
) -> Passes:
    """Return the FLOPs of a transformer of this configuration. sizes: of its three inputs."""
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(config)
        if lora:
            add_lora(transformer, **lora)
        inputs = [torch.zeros(size) for size in sizes]
    forward = _counted(lambda: transformer(*inputs, return_dict=False))
    plain = _counted(lambda: transformer(*inputs, return_dict=False)[0].sum().backward()) - forward
    if not gradient_checkpointing:
        return forward, plain, 0.0
    transformer.train().enable_gradient_checkpointing()
    again = _counted(lambda: transformer(*inputs, return_dict=False)[0].sum().backward()) - forward
    return forward, plain, again - plain


def _counted(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, attention_backend("native"):
        work()
    return float(counter.get_total_flops())
