import pytest
import torch
from torch.nn.functional import max_pool2d

from flash_grpo.tiny_world.clips import GROUND, captions, render
from flash_grpo.tiny_world.fidelity import PictureFidelity

TEXT = tuple(captions())


@pytest.fixture(scope="module")
def video_BFHWC() -> torch.Tensor:
    return render(TEXT, torch.Generator().manual_seed(0))


def score(video: torch.Tensor) -> torch.Tensor:
    return PictureFidelity().score(video)


def test_clean_renders_of_every_caption_score_one(video_BFHWC):
    assert score(video_BFHWC).min() > 0.99
    assert score(video_BFHWC).max() <= 1


def test_neither_colour_nor_direction_of_the_text_nor_the_order_of_frames_counts(video_BFHWC):
    asked, other = (PictureFidelity()((video_BFHWC * 255).byte(), text) for text in (TEXT, TEXT[::-1]))
    assert asked.total_B.equal(other.total_B)
    assert list(asked.parts) == ["fidelity"] and asked.parts["fidelity"].equal(asked.total_B)
    torch.testing.assert_close(score(video_BFHWC[:, [0, 5, 2, 7, 4, 1, 6, 3, 8]]), score(video_BFHWC))


@pytest.mark.parametrize(
    ("spoilt", "below"),
    [
        (lambda video: GROUND + 0.5 * (video - GROUND), 0.9),  # dim
        (lambda video: _wider(video, 3), 0.985),  # bloated
        (lambda video: _wider(video, 5), 0.8),
        (lambda video: torch.maximum(video, video.flip(2, 3).roll(5, 2)), 0.9),  # two shapes
        (lambda video: video + 0.1 * torch.randn(video.shape, generator=torch.Generator().manual_seed(1)), 0.9),
        (lambda video: torch.full_like(video, GROUND), 0.01),
        (torch.zeros_like, 0.01),
        (torch.ones_like, 0.01),
    ],
    ids=["dim", "bloated", "more bloated", "two", "noisy", "empty", "dark", "white"],
)
def test_a_picture_that_no_clip_has_scores_less(video_BFHWC, spoilt, below):
    scores_B = score(spoilt(video_BFHWC))
    assert scores_B.max() < below
    assert scores_B.min() >= 0


def _wider(video: torch.Tensor, width: int) -> torch.Tensor:
    pooled = max_pool2d(video.flatten(0, 1).permute(0, 3, 1, 2), width, 1, width // 2)
    return pooled.permute(0, 2, 3, 1).unflatten(0, video.shape[:2])


def test_a_score_does_not_depend_on_the_rest_of_the_batch(video_BFHWC):
    torch.testing.assert_close(score(video_BFHWC)[5:6], score(video_BFHWC[5:6]))


def test_a_threshold_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"reward\.threshold=0: must be a positive number"):
        PictureFidelity(threshold=0)
