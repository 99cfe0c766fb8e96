"""A small random Qwen2-VL with its own tokenizer and preprocessing, in the published layout on disk."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLImageProcessorPil

TEXTS = ["a red cat", "the dog runs in snow"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}"
    "{% if c.type != 'text' %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}<|im_start|>assistant "
)
TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WIDTH = 32


def word_tokenizer(special: list[str], **options) -> PreTrainedTokenizerFast:
    """One token a word of TEXTS; with no special tokens it wraps texts as CLIP's does."""
    words = ["<pad>", "<unk>", "<s>", "</s>", *dict.fromkeys(" ".join(TEXTS).split()), "rate", "user", "assistant"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=special,
        **options,
    )


def write(folder: Path, more_tokens: int) -> Qwen2VLConfig:
    """Writes all but weights; the returned configuration has room for the tokens that a reward adds."""
    tokenizer = word_tokenizer(TOKENS, chat_template=CHAT)
    image, video, start = (
        tokenizer.convert_tokens_to_ids(name) for name in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>")
    )
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + more_tokens,
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return config


def published(name: str) -> str:
    """The name of a parameter in transformers 4.45, in which HPSv3 and VideoReward were saved."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def counted(work: Callable[[], object]) -> int:
    """The FLOPs that torch counts while the work is done for real."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()
