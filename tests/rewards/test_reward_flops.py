"""The FLOPs of the published models that rewards are made of, by hand."""

from transformers import CLIPConfig, CLIPVisionConfig, Qwen2VLConfig

from flash_grpo.rewards.flops import clip_flops, clip_vision_flops, qwen_flops

# of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, from which PickScore was tuned, and of Qwen/Qwen2-VL-7B-Instruct, HPSv3's base
VIT_H = CLIPConfig(
    vision_config={
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "patch_size": 14,
    },
    text_config={
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
    projection_dim=1024,
)  # fmt: skip
QWEN_7B = Qwen2VLConfig(
    text_config={
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    },
    vision_config={
        "embed_dim": 1280, "hidden_size": 3584, "depth": 32, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14,
    },
)  # fmt: skip


def _layers(tokens, width, feed_forward, depth, matrices=4, ways=2):
    """Return the FLOPs of `depth` layers: d x d matrices, `ways` of d x f, attention over all tokens."""
    return depth * 2 * tokens * (matrices * width**2 + ways * width * feed_forward + 2 * tokens * width)


def test_the_published_clip_by_hand():
    patches, tokens = 256, 77
    image = 2 * patches * 3 * 14**2 * 1280 + _layers(patches + 1, 1280, 5120, 32) + 2 * 1280 * 1024
    text = _layers(tokens, 1024, 4096, 24) + 2 * 1024 * 1024
    assert clip_flops(VIT_H) == image + text + 2 * 1024  # and their product
    alone = CLIPVisionConfig(**{**VIT_H.vision_config.to_dict(), "projection_dim": 1024})
    assert clip_vision_flops(alone) == image


def test_the_published_qwen_by_hand():
    """A frame of 480 x 832, which HPSv3 resizes to 336 x 588, in a conversation of 800 tokens."""
    grid, tokens = (1, 24, 42), 800
    patches, merged = 24 * 42, 24 * 42 // 4
    vision = 2 * patches * 3 * 2 * 14**2 * 1280 + _layers(patches, 1280, 5120, 32)
    vision += 2 * merged * 5120 * (5120 + 3584)
    keys_and_values = 2 * 512 / 3584  # four heads of 28, of two of the four d x d matrices
    text = _layers(tokens, 3584, 18944, 28, matrices=2 + keys_and_values, ways=3)
    assert qwen_flops(QWEN_7B, grid, tokens) / (vision + text) - 1 < 1e-5
    assert qwen_flops(QWEN_7B, grid, tokens) >= vision + text
    assert qwen_flops(QWEN_7B, grid, tokens, adapters=1000) - qwen_flops(QWEN_7B, grid, tokens) == 2 * 1000 * tokens
