"""Score videos by a scorer of single images.

Such a reward cannot see motion: watch the frame minimum, and the videos themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.types import Scores

ImageScorer = Callable[[torch.Tensor, list[str]], torch.Tensor]


def scorer_device(name: str) -> torch.device:
    """Return the device that a scorer runs on. name: auto, cpu or cuda; a rank's scorer shares the rank's GPU."""
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class FrameReward:
    """Score a video by the mean image score of its best frames.

    name: of the reward among the parts. scorer: turns uint8 images [N, H, W, 3] and N texts into float scores [N].
    every: score each n-th frame, from the first. best: the share of the scored frames that counts, in (0, 1], at least one
    frame (release: 0.3). batch: images scored at once.
    Parts: the total as `name`, and mean and minimum over the scored frames as `name`_frame_mean and `name`_frame_min.
    """

    name: str
    scorer: ImageScorer
    every: int = 1
    best: float = 1.0
    batch: int = 8

    def __post_init__(self) -> None:
        ranges.text("reward.name", self.name)
        ranges.whole("reward.every", self.every)
        ranges.whole("reward.batch", self.batch)
        ranges.number("reward.best", self.best, above=0, at_most=1)

    def flops(self, video_shape: tuple[int, ...], text: str) -> float:
        """Return the FLOPs of scoring one video (F, H, W, 3): an image's, times the frames that are scored.

        A scorer that is a network has `flops(image_shape, text)`; any other counts as 0.
        """
        image = self.scorer.flops(video_shape[1:], text) if hasattr(self.scorer, "flops") else 0.0
        return len(range(0, video_shape[0], self.every)) * image

    @torch.no_grad()
    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        chosen = video_BFHWC[:, :: self.every]
        frames = chosen.shape[1]
        image_NHWC, text_N = chosen.flatten(0, 1), [line for line in text for _ in range(frames)]
        score_N = [
            self.scorer(image_NHWC[rows], [text_N[row] for row in rows.tolist()]).float().cpu()
            for rows in torch.arange(len(image_NHWC)).split(self.batch)
        ]
        score_BF = torch.cat(score_N).reshape(len(text), frames)
        total_B = score_BF.topk(max(1, int(self.best * frames)), dim=1).values.mean(1)
        parts = {"": total_B, "_frame_mean": score_BF.mean(1), "_frame_min": score_BF.min(1).values}
        return Scores(total_B=total_B, parts={self.name + suffix: value for suffix, value in parts.items()})
