"""Pretrain a small world's Wan transformer by flow matching on its clips, and write the checkpoint in diffusers' layout.

x_sigma = (1 - sigma) x0 + sigma eps, target eps - x0, timestep = 1000 sigma. What differs between the small worlds is a
`World`; the loop and the checkpoint are the same.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flash_grpo.arguments import Arguments
from flash_grpo.tiny_world.codec import LinearVideoCodec

TEXT_WIDTH = 32
TEXT_DROPOUT = 0.1
SHIFT = 3.0
BATCH = 64
LEARNING_RATE = 2e-3
EMA_DECAY = 0.995
LOSS_WINDOW = 100


@dataclass(frozen=True, kw_only=True)
class World:
    """The clips, captions and settings with which one small world is pretrained."""

    command: str
    """The module that makes the checkpoint."""

    captions: tuple[str, ...]
    """The K captions that a clip can have."""

    text_tokens: int
    """M: the number of words of the longest caption, and one for `</s>`."""

    latent_channels: int

    transformer: Mapping[str, Any]
    """The arguments of `WanTransformer3DModel` in which the small worlds differ."""

    codec_clips: Callable[[torch.Generator], torch.Tensor]
    """Return the clips [N, F, H, W, 3] that the codec is fitted to."""

    batch: Callable[[torch.Generator, float], tuple[torch.Tensor, torch.Tensor]]
    """Return BATCH clips and the index of each clip's caption in `captions`, K for `""`, int64 [B]. The float argument is the
    share of the training that is done, in [0, 1)."""

    rate: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]
    """Return the learning rate's scheduler for this number of steps; the optimizer's own rate is LEARNING_RATE."""

    steps: int
    """Default of the command's --steps."""

    def build_transformer(self) -> WanTransformer3DModel:
        """Build an untrained transformer; its patches are 1 x 2 x 2 latents."""
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            text_dim=TEXT_WIDTH,
            freq_dim=64,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
            **self.transformer,
        )


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


@torch.no_grad()
def encode_text(tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, texts: list[str]) -> torch.Tensor:
    """Return the conditions [B, M, 32] of `texts`, zero beyond each text's length as in diffusers' `WanPipeline`."""
    length = tokenizer.model_max_length
    token = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    state_BMD = encoder(token.input_ids, token.attention_mask).last_hidden_state
    return state_BMD * token.attention_mask[..., None]


def silenced(said_B: torch.Tensor, captions: int, generator: torch.Generator) -> torch.Tensor:
    """Replace each caption's index by the index of `""`, with probability TEXT_DROPOUT.

    captions: their number, which is also the index of `""`.
    """
    return torch.where(torch.rand(len(said_B), generator=generator) < TEXT_DROPOUT, captions, said_B)


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
    world: World,
    transformer: WanTransformer3DModel,
    codec: LinearVideoCodec,
    condition_KMD: torch.Tensor,
    steps: int,
    generator: torch.Generator,
) -> tuple[WanTransformer3DModel, float]:
    """Train the transformer; return its EMA and the mean loss of the last steps. The last condition is that of `""`."""
    ema = AveragedModel(transformer, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=LEARNING_RATE)
    rate = world.rate(optimizer, steps)
    losses = []
    for step in (bar := trange(steps, desc="pretraining")):
        clip_BFHWC, said_B = world.batch(generator, step / steps)
        loss = flow_matching_loss(transformer, codec.encode(clip_BFHWC), condition_KMD[said_B], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        rate.step()
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


def make_checkpoint(world: World, output: Path, steps: int, seed: int) -> dict[str, float]:
    """Write the whole checkpoint to `output`; return its final loss and the codec's PSNR.

    Equal steps, seed and threads give equal files.
    """
    generator = torch.Generator().manual_seed(seed)
    tokenizer = build_tokenizer(world.captions, world.text_tokens)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, transformer = build_text_encoder(len(tokenizer)), world.build_transformer()
    clip_NFHWC = world.codec_clips(generator)
    codec = LinearVideoCodec.fit(clip_NFHWC, world.latent_channels)
    error = (codec.decode(codec.encode(clip_NFHWC)) - clip_NFHWC).square().mean()
    condition_KMD = encode_text(tokenizer, encoder, [*world.captions, ""])
    ema, loss = pretrain(world, transformer, codec, condition_KMD, steps, generator)
    for part, folder in ((ema, "transformer"), (encoder, "text_encoder"), (tokenizer, "tokenizer"), (codec, "vae")):
        part.save_pretrained(output / folder)
    (output / "model_index.json").write_text(json.dumps(model_index(), indent=2) + "\n")
    return {"final_loss": round(loss, 4), "codec_psnr_db": round(-10 * error.log10().item(), 2)}


def run_command(
    world: World,
    description: str | None,
    argv: list[str] | None,
    measure: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """Make the checkpoint as the command line says, and write pretraining.json, which says how it was made.

    measure: returns further entries for pretraining.json from the checkpoint's folder.
    """
    args = _parser(world, description).parse_args(argv)
    torch.set_num_threads(args.threads)
    measured = make_checkpoint(world, args.output, args.steps, args.seed)
    command = f"python -m {world.command} --output {args.output} --steps {args.steps}"
    record = {
        "command": f"{command} --threads {args.threads} --seed {args.seed}",
        "steps": args.steps,
        "seed": args.seed,
        **measured,
        **(measure(args.output) if measure else {}),
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
    }
    (args.output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


def _parser(world: World, description: str | None) -> Arguments:
    parser = Arguments(
        prog=f"python -m {world.command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=world.steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser
