"""A Wan pipeline of the same classes as Wan2.1-T2V-1.3B, small and random, in diffusers' own layout on disk."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from flash_grpo.tiny_world.pretrain import build_tokenizer

TEXT_TOKENS, TEXT_WIDTH = 12, 32
SENTENCES = ("a red cat runs slowly", "the blue dog jumps over a house", "a ball rolls in the snow", "burns & of under")
SHAPE = ("model.frames=5", "model.height=32", "model.width=32", f"model.max_text_tokens={TEXT_TOKENS}")


def write(folder: Path) -> Path:
    """A latent of 16 x 2 x 4 x 4, 8 tokens; the transformer's last layer is large enough for guidance to matter."""
    tokenizer = build_tokenizer(SENTENCES, TEXT_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(
                UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, num_heads=4, d_ff=64, num_layers=2)
            ).eval(),
            vae=AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=WanTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=24,
                text_dim=TEXT_WIDTH,
                freq_dim=32,
                ffn_dim=64,
                num_layers=2,
                rope_max_seq_len=32,
            ),
        )
    pipeline.save_pretrained(folder)
    return folder
