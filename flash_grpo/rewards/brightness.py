"""Score videos by brightness, at no cost: a stand-in for a scorer in benchmarks and in tests of what surrounds scorers."""

import torch

from flash_grpo.algorithm.types import Scores


def brightness(video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
    """Return the mean over frames, pixels and colours of uint8 videos, in [0, 1]; the text is ignored."""
    total_B = video_BFHWC.float().flatten(1).mean(1) / 255
    return Scores(total_B=total_B, parts={"brightness": total_B})
