"""`python -m flash_grpo.tiny_world.pretrain --output DIR`: make the tiny world's checkpoint, in 100 s on one idle core.

A 472 k parameter `WanTransformer3DModel` learns flow matching on clips of the tiny world: x_sigma = (1 - sigma) x0 +
sigma eps, target eps - x0, timestep = 1000 sigma. Its captions lie: colour and direction are each drawn anew with
probability `CAPTION_NOISE`, so that the model draws well and obeys badly, which leaves room for reinforcement learning.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flash_grpo.tiny_world.clips import COLOURS, DIRECTIONS, SHAPES, captions, render
from flash_grpo.tiny_world.codec import LinearVideoCodec

CAPTION_NOISE = 0.3
TEXT_DROPOUT = 0.1
TEXT_TOKENS = 8
TEXT_WIDTH = 32
SHIFT = 3.0
BATCH = 64
LEARNING_RATE = 2e-3
EMA_DECAY = 0.995
CODEC_CLIPS = 1024
LOSS_WINDOW = 100


def build_tokenizer(texts: Iterable[str], max_tokens: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per word of the texts and a closing `</s>`; an empty text is `</s>` alone."""
    words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(" ".join(texts).split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_tokens
    )


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """Build a random UMT5 encoder of one layer and width 32; it is never trained."""
    config = UMT5Config(
        vocab_size=vocab_size, d_model=TEXT_WIDTH, d_kv=8, num_heads=4, d_ff=64, num_layers=1, num_decoder_layers=1
    )
    return UMT5EncoderModel(config).eval().requires_grad_(False)


def build_transformer() -> WanTransformer3DModel:
    """Build Wan's transformer with 472 k parameters: 12 tokens for a latent of 16 x 3 x 4 x 4."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=256,
        num_layers=3,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


@torch.no_grad()
def encode_text(tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, texts: list[str]) -> torch.Tensor:
    """Return the conditions [B, 8, 32] of `texts`, zero beyond each text's length as in diffusers' `WanPipeline`."""
    token = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
    state_BMD = encoder(token.input_ids, token.attention_mask).last_hidden_state
    return state_BMD * token.attention_mask[..., None]


def draw_caption_pairs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw what clips show and what their captions say, int64 [B] each: indices into `captions()`, 32 for `""`.

    Captions are noisy: colour and direction are redrawn with probability CAPTION_NOISE.
    """
    sizes = torch.tensor([len(COLOURS), len(SHAPES), len(DIRECTIONS)])[:, None]
    shown_AB, other_AB = (torch.rand(2, 3, BATCH, generator=generator) * sizes).long()
    redrawn_AB = torch.rand(3, BATCH, generator=generator) < torch.tensor([CAPTION_NOISE, 0.0, CAPTION_NOISE])[:, None]
    said_AB = torch.where(redrawn_AB, other_AB, shown_AB)
    silent_B = torch.rand(BATCH, generator=generator) < TEXT_DROPOUT
    said_B = torch.where(silent_B, len(captions()), _caption_index(said_AB))
    return _caption_index(shown_AB), said_B


def _caption_index(attribute_AB: torch.Tensor) -> torch.Tensor:
    """Return the place in `captions()` of colour, shape and direction indices [3, B]."""
    index = torch.arange(len(captions())).view(len(COLOURS), len(SHAPES), len(DIRECTIONS))
    return index[tuple(attribute_AB)]


def flow_matching_loss(
    transformer: WanTransformer3DModel, x0_BCFHW: torch.Tensor, condition_BMD: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return the velocity's mean squared error at noise levels that are spaced like a denoising grid of shift 3."""
    uniform_B = torch.rand(len(x0_BCFHW), generator=generator)
    sigma_B = SHIFT * uniform_B / (1 + (SHIFT - 1) * uniform_B)
    noise_BCFHW = torch.randn(x0_BCFHW.shape, generator=generator)
    x_BCFHW = torch.lerp(x0_BCFHW, noise_BCFHW, sigma_B[:, None, None, None, None])
    velocity_BCFHW = transformer(x_BCFHW, sigma_B * 1000, condition_BMD, return_dict=False)[0]
    return (velocity_BCFHW - (noise_BCFHW - x0_BCFHW)).square().mean()


def pretrain(
    transformer: WanTransformer3DModel,
    codec: LinearVideoCodec,
    condition_KMD: torch.Tensor,
    steps: int,
    generator: torch.Generator,
) -> tuple[WanTransformer3DModel, float]:
    """Train the transformer; return its EMA and the mean loss of the last steps. K = 33 texts, the last `""`."""
    ema = AveragedModel(transformer, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=LEARNING_RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, text = [], captions()
    for _ in (bar := trange(steps, desc="pretraining")):
        shown_B, said_B = draw_caption_pairs(generator)
        x0_BCFHW = codec.encode(render([text[i] for i in shown_B], generator))
        loss = flow_matching_loss(transformer, x0_BCFHW, condition_KMD[said_B], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        cosine.step()
        ema.update_parameters(transformer)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    recent = losses[-LOSS_WINDOW:]
    return ema.module, sum(recent) / len(recent)


def model_index() -> dict[str, str | list[str]]:
    """Return the parts of the checkpoint as diffusers names them: folder, then library and class."""
    return {
        "_class_name": "WanPipeline",
        "_diffusers_version": diffusers.__version__,
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["flash_grpo.tiny_world.codec", "LinearVideoCodec"],
    }


def make_checkpoint(output: Path, steps: int, seed: int) -> dict[str, float]:
    """Write the whole checkpoint to `output`; return its final loss and the codec's PSNR.

    Equal steps, seed and threads give equal files.
    """
    generator = torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer(captions(), TEXT_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, transformer = build_text_encoder(len(tokenizer)), build_transformer()
    clips_BFHWC = render(captions() * (CODEC_CLIPS // len(captions())), generator)
    codec = LinearVideoCodec.fit(clips_BFHWC)
    error = (codec.decode(codec.encode(clips_BFHWC)) - clips_BFHWC).square().mean()
    condition_KMD = encode_text(tokenizer, encoder, [*captions(), ""])
    ema, loss = pretrain(transformer, codec, condition_KMD, steps, generator)
    for part, folder in ((ema, "transformer"), (encoder, "text_encoder"), (tokenizer, "tokenizer"), (codec, "vae")):
        part.save_pretrained(output / folder)
    (output / "model_index.json").write_text(json.dumps(model_index(), indent=2) + "\n")
    return {"final_loss": round(loss, 4), "codec_psnr_db": round(-10 * error.log10().item(), 2)}


def main(argv: list[str] | None = None) -> None:
    """Run the command; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1650)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    measured = make_checkpoint(args.output, args.steps, args.seed)
    command = f"python -m flash_grpo.tiny_world.pretrain --output {args.output} --steps {args.steps}"
    record = {
        "command": f"{command} --threads {args.threads} --seed {args.seed}",
        "steps": args.steps,
        "seed": args.seed,
        **measured,
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
    }
    (args.output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
