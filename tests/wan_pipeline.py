"""A Wan pipeline of the same classes as Wan2.1-T2V-1.3B, small and random, in diffusers' own layout on disk."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from flash_grpo.tiny_world.pretraining import build_tokenizer

TEXT_TOKENS, TEXT_WIDTH = 12, 32
SENTENCES = ("a red cat runs slowly", "the blue dog jumps over a house", "a ball rolls in the snow", "burns & of under")
SHAPE = ("model.frames=5", "model.height=32", "model.width=32", f"model.max_text_tokens={TEXT_TOKENS}")


RESIDUAL_VAE = {  # of the structure of Wan2.2-TI2V-5B's: 16 x smaller, in patches of 2
    "base_dim": 8, "decoder_base_dim": 8, "z_dim": 8, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1, "is_residual": True,
    "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    "latents_mean": [0.1] * 8, "latents_std": [1.5] * 8,
}  # fmt: skip


def overrides(pipeline: Path, folder: Path) -> tuple[str, ...]:
    """Overrides: recipe=wan21_1p3b on a pipeline that `write` made, two prompts to train on and two held out, in a folder."""
    for name, sentences in (("train", SENTENCES[:2]), ("test", SENTENCES[2:])):
        (folder / f"{name}.txt").write_text("\n".join(sentences))
    return (
        "recipe=wan21_1p3b",
        f"model.path={pipeline}",
        *SHAPE,
        f"model.embedding_cache={folder / 'text'}",
        "reward=brightness",
        f"prompts.train={folder / 'train.txt'}",
        f"prompts.test={folder / 'test.txt'}",
        "rollout.layout.group_size=3",
        "budget.device_hours=null",
        "threads=1",
    )


def write(folder: Path) -> Path:
    """A latent of 16 x 2 x 4 x 4, 8 tokens; the transformer's last layer is large enough for guidance to matter."""
    pipeline().save_pretrained(folder)
    return folder


def write_two_experts(folder: Path) -> Path:
    """The same as Wan2.2-A14B is: with a second transformer, of other weights, below timestep 875."""
    pipeline(two=True, boundary_ratio=0.875).save_pretrained(folder)
    return folder


def write_token_timesteps(folder: Path) -> Path:
    """The same as Wan2.2-TI2V-5B is: with a timestep for each token, and a decoder that enlarges 16 times."""
    pipeline(vae=RESIDUAL_VAE, channels=8, expand_timesteps=True).save_pretrained(folder)
    return folder


def _transformer(channels: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
    )


def pipeline(vae: dict | None = None, channels: int = 16, two: bool = False, **options) -> WanPipeline:
    """Make one with random weights, always the same. vae: AutoencoderKLWan's arguments. options: WanPipeline's."""
    tokenizer = build_tokenizer(SENTENCES, TEXT_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(
                UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, num_heads=4, d_ff=64, num_layers=2)
            ).eval(),
            vae=AutoencoderKLWan(**vae or {"base_dim": 8, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=_transformer(channels),
            transformer_2=_transformer(channels) if two else None,
            **options,
        )
