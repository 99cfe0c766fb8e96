"""A reward that costs nothing: it stands in for a scorer in benchmarks and in tests of everything around one."""

import torch

from flash_grpo.algorithm.types import Scores


def brightness(video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
    """Mean over frames, pixels and colours, in [0, 1]; the text is not looked at."""
    total_B = video_BFHWC.float().flatten(1).mean(1) / 255
    return Scores(total_B=total_B, parts={"brightness": total_B})
