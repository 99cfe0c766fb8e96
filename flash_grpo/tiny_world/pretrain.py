"""`python -m flash_grpo.tiny_world.pretrain --output DIR`: make the tiny world's checkpoint, in 100 s on one idle core.

A 472 k parameter `WanTransformer3DModel` learns flow matching on clips of the tiny world (`pretraining`). Its captions lie:
colour and direction are each drawn anew with probability `CAPTION_NOISE`, so that the model draws well but follows
captions badly, which leaves room for reinforcement learning.
"""

import torch

from flash_grpo.tiny_world.clips import COLOURS, DIRECTIONS, SHAPES, captions, render
from flash_grpo.tiny_world.pretraining import BATCH, World, run_command, silenced

CAPTION_NOISE = 0.3
CODEC_CLIPS = 1024


def draw_caption_pairs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw what clips show and what their captions say, int64 [B] each: indices into `captions()`, 32 for `""`.

    Captions are noisy: colour and direction are redrawn with probability CAPTION_NOISE.
    """
    sizes = torch.tensor([len(COLOURS), len(SHAPES), len(DIRECTIONS)])[:, None]
    shown_AB, other_AB = (torch.rand(2, 3, BATCH, generator=generator) * sizes).long()
    redrawn_AB = torch.rand(3, BATCH, generator=generator) < torch.tensor([CAPTION_NOISE, 0.0, CAPTION_NOISE])[:, None]
    said_AB = torch.where(redrawn_AB, other_AB, shown_AB)
    said_B = silenced(_caption_index(said_AB), len(captions()), generator)
    return _caption_index(shown_AB), said_B


def _caption_index(attribute_AB: torch.Tensor) -> torch.Tensor:
    """Return the place in `captions()` of colour, shape and direction indices [3, B]."""
    index = torch.arange(len(captions())).view(len(COLOURS), len(SHAPES), len(DIRECTIONS))
    return index[tuple(attribute_AB)]


def _batch(generator: torch.Generator, _: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips, and indices of captions that describe them badly."""
    text = captions()
    shown_B, said_B = draw_caption_pairs(generator)
    return render([text[i] for i in shown_B], generator), said_B


WORLD = World(
    command="flash_grpo.tiny_world.pretrain",
    captions=tuple(captions()),
    text_tokens=8,
    latent_channels=16,
    transformer={"num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 256, "num_layers": 3},
    codec_clips=lambda generator: render(captions() * (CODEC_CLIPS // len(captions())), generator),
    batch=_batch,
    rate=torch.optim.lr_scheduler.CosineAnnealingLR,
    steps=1650,
)


def main(argv: list[str] | None = None) -> None:
    """Run the command; see the top of the file."""
    run_command(WORLD, __doc__, argv)


if __name__ == "__main__":
    main()
