"""The tiny world's captions as prompts."""

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.tiny_world import clips


def from_shapes() -> Prompts:
    """The tiny world's 32 captions, all of them, for both: there are no others. Evaluation differs in its noise."""
    texts = tuple(clips.captions())
    return Prompts(train=texts, test=texts)
