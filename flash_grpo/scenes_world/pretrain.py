"""`python -m flash_grpo.scenes_world.pretrain --output DIR --threads 1`: make the scenes world's checkpoint.

A `WanTransformer3DModel` of 859 k parameters learns flow matching on clips of the scenes world (`tiny_world.pretraining`),
in five CPU-minutes. Its captions are those of training. For the first `HONEST` of the steps they are true, and the model
learns what the words mean. Then they lie: each attribute of what is shown is drawn anew with its `CAPTION_NOISE`, which
leaves room for reinforcement learning, and the learning rate falls to 0. (A prototype whose captions lied from the beginning
had not learnt direction after 3,000 steps.)
"""

import json
from pathlib import Path
from typing import Any

import torch

from flash_grpo.scenes_world.clips import WORDS, asked, captions, render
from flash_grpo.scenes_world.gates import failed, measure
from flash_grpo.tiny_world.pretraining import BATCH, World, run_command, silenced

CAPTION_NOISE = {"colour": 0.5, "size": 0.2, "pace": 0.4, "direction": 0.4, "ground": 0.5}
HONEST = 2 / 3
WARM_UP = 100
CODEC_CLIPS = 1152
SAID = tuple(captions(held_out=False))
_SAID_KA = asked(SAID)


def draw_caption_pairs(generator: torch.Generator, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw what clips show, int64 [B, A] as `asked`, and what their captions say: an index into SAID, len(SAID) for `""`.

    Only captions of training are said. Once captions lie, clips may show what is held out.
    """
    said_B = torch.randint(len(SAID), (BATCH,), generator=generator)
    words_A = torch.tensor([len(words) for words in WORDS.values()])
    other_BA = (torch.rand(BATCH, len(words_A), generator=generator) * words_A).long()
    noise_A = torch.tensor(list(CAPTION_NOISE.values())) * (progress >= HONEST)
    redrawn_BA = torch.rand(BATCH, len(words_A), generator=generator) < noise_A
    shown_BA = torch.where(redrawn_BA, other_BA, _SAID_KA[said_B])
    return shown_BA, silenced(said_B, len(SAID), generator)


def _batch(generator: torch.Generator, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips, and indices of captions that describe them."""
    shown_BA, said_B = draw_caption_pairs(generator, progress)
    return render(shown_BA, generator), said_B


def _rate(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a scheduler that rises for WARM_UP steps, stays, and falls to 0 while captions lie."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP, (1 - step / steps) / (1 - HONEST))
    )


WORLD = World(
    command="flash_grpo.scenes_world.pretrain",
    captions=SAID,
    text_tokens=10,
    latent_channels=16,
    transformer={"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 384, "num_layers": 3},
    codec_clips=lambda generator: render(_SAID_KA.repeat(CODEC_CLIPS // len(SAID), 1), generator),
    batch=_batch,
    rate=_rate,
    steps=3000,
)


def _gated(folder: Path) -> dict[str, Any]:
    """Return what `gates` measures of the checkpoint, and the gates that it fails; print both."""
    measured = measure(folder)
    measured["failed"] = failed(measured)
    print(json.dumps(measured, indent=2))
    return measured


def main(argv: list[str] | None = None) -> None:
    """Run the command; see the top of the file."""
    run_command(WORLD, __doc__, argv, measure=_gated)


if __name__ == "__main__":
    main()
