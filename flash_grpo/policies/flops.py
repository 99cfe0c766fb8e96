"""Count the FLOPs of a forward of Wan's transformer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def forward_flops(config: Mapping[str, Any], latent_shape: tuple[int, ...], text_tokens: int) -> float:
    """Return the FLOPs of one forward of one sample, attention included.

    config: of the transformer. latent_shape: (C, F, H, W). They are counted on torch's meta device, which takes neither
    memory nor time.
    """
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(config)
        inputs = torch.zeros(1, *latent_shape), torch.zeros(1), torch.zeros(1, text_tokens, config["text_dim"])
    with FlopCounterMode(display=False) as counter, attention_backend("native"):
        transformer(*inputs, return_dict=False)
    return float(counter.get_total_flops())


@torch.no_grad()
def tiny_flops(
    transformer: WanTransformer3DModel, latent_shape: tuple[int, ...], encode: Callable[[list[str]], torch.Tensor]
) -> float:
    """Return the FLOPs of one forward of the tiny world's transformer, as its committed budgets count them.

    encode: the policy's, which must not have encoded "" yet. The count lacks attention, which torch's counter does not see
    on a CPU, and includes one encoding of the empty text. Another count would end every committed run at another iteration.
    """
    device = transformer.device
    x, timestep = torch.zeros(1, *latent_shape, device=device), torch.zeros(1, device=device)
    with FlopCounterMode(display=False) as counter:
        transformer(x, timestep, encode([""]).to(device), return_dict=False)
    return float(counter.get_total_flops())
