"""Give the tiny world's captions as prompts."""

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.tiny_world import clips


def from_shapes() -> Prompts:
    """Return all 32 captions, for training and for evaluation: there are no others to hold out, only other noise."""
    texts = tuple(clips.captions())
    return Prompts(train=texts, test=texts)
