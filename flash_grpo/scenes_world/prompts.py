"""Give the scenes world's captions as prompts."""

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.scenes_world.clips import captions


def from_scenes() -> Prompts:
    """Return 288 captions to train on and 96 held-out ones, of the same words, to evaluate on."""
    return Prompts(train=tuple(captions(held_out=False)), test=tuple(captions(held_out=True)))
