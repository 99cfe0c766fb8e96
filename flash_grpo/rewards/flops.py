"""Count the FLOPs of scoring on torch's meta device, from a model's configuration: no weights, no memory, no time.

Attention is counted as all queries times all keys, as torch's counter does for every backend, causal or not. What a reward's
head adds is left out: less than a millionth of HPSv3, VideoAlign and PickScore.
"""

from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2VLConfig,
    Qwen2VLModel,
)

EAGER = {"attn_implementation": "eager"}  # the others look into masks, which have no values on the meta device


def qwen_flops(config: Qwen2VLConfig, grid: Sequence[int], tokens: int, adapters: int = 0) -> float:
    """Return the FLOPs of Qwen2-VL on one conversation.

    grid: (T, H, W) of its image's or video's patches. tokens: of the conversation, a mark for each merged patch included.
    adapters: parameters of LoRA on the language model.
    """
    with torch.device("meta"):
        trunk = Qwen2VLModel._from_config(config, **EAGER)
        vision, text, width = trunk.visual, trunk.language_model, config.vision_config
        frames, patches = grid[0], grid[1] * grid[2]
        pixels = torch.zeros(frames * patches, width.in_channels * width.temporal_patch_size * width.patch_size**2)
        patch_PD = torch.zeros(frames * patches, width.embed_dim)
        angle_PE = torch.zeros(len(patch_PD), width.embed_dim // width.num_heads)
        asked = {
            "inputs_embeds": torch.zeros(1, tokens, config.text_config.hidden_size),
            "attention_mask": torch.ones(1, tokens, dtype=torch.long),
            "position_ids": torch.arange(tokens).expand(3, 1, -1),
        }
    ends = torch.arange(0, len(patch_PD) + 1, patches)  # attention is within a frame
    block = _counted(lambda: vision.blocks[0](patch_PD, cu_seqlens=ends, position_embeddings=(angle_PE, angle_PE)))
    around = _counted(lambda: (vision.patch_embed(pixels), vision.merger(patch_PD)))
    return around + width.depth * block + _counted(lambda: text(**asked)) + 2.0 * adapters * tokens


def clip_flops(config: CLIPConfig) -> float:
    """Return the FLOPs of CLIP on one image and one text of the greatest length."""
    with torch.device("meta"):
        model = CLIPModel._from_config(config, **EAGER)
        pixels = _image(config.vision_config)
        tokens = torch.zeros(1, config.text_config.max_position_embeddings, dtype=torch.long)
    return _counted(lambda: model(input_ids=tokens, pixel_values=pixels))


def clip_vision_flops(config: CLIPVisionConfig) -> float:
    """Return the FLOPs of CLIP's image half on one image."""
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection._from_config(config, **EAGER)
        pixels = _image(config)
    return _counted(lambda: model(pixels))


def _image(config: CLIPVisionConfig) -> torch.Tensor:
    return torch.zeros(1, config.num_channels, config.image_size, config.image_size)


def _counted(work: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
