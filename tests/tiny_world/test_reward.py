import pytest
import torch

from flash_grpo.tiny_world.clips import captions, render
from flash_grpo.tiny_world.reward import ShapesReward

TEXT = tuple(captions())
PARTS = ("colour", "motion", "smoothness")


@pytest.fixture(scope="module")
def video_BFHWC() -> torch.Tensor:
    return render(TEXT, torch.Generator().manual_seed(0))


def score(video: torch.Tensor, text: tuple[str, ...] = TEXT) -> dict[str, torch.Tensor]:
    return ShapesReward().score(video, text)


def renamed(old: str, new: str) -> tuple[str, ...]:
    return tuple(text.replace(old, new) for text in TEXT)


def test_rendered_clips_score_well_in_each_part(video_BFHWC):
    parts = score(video_BFHWC)
    assert parts["total"].min() > 2.3
    assert all(parts[name].min() > 0.6 and parts[name].max() <= 1 for name in PARTS)


def test_the_total_is_the_sum_of_the_parts_and_uint8_scores_alike(video_BFHWC):
    exact, scores = score(video_BFHWC), ShapesReward()((video_BFHWC * 255).round().to(torch.uint8), TEXT)
    assert set(scores.parts) == set(PARTS)
    assert scores.total_B.dtype == torch.float32
    assert scores.total_B.shape == (32,)
    torch.testing.assert_close(scores.total_B, sum(scores.parts.values()))
    torch.testing.assert_close(scores.total_B, exact["total"], atol=0.03, rtol=0)


@pytest.mark.parametrize("other", ["green", "blue", "yellow"])
def test_a_wrong_colour_costs_the_colour_and_nothing_else(video_BFHWC, other):
    right, wrong = score(video_BFHWC[:8], TEXT[:8]), score(video_BFHWC[:8], renamed("red", other)[:8])
    assert wrong["colour"].max() < 0.15
    assert wrong["motion"].equal(right["motion"])
    assert wrong["smoothness"].equal(right["smoothness"])


def test_the_motion_played_backwards_is_punished(video_BFHWC):
    torch.testing.assert_close(score(video_BFHWC.flip(1))["motion"], -score(video_BFHWC)["motion"], atol=1e-4, rtol=0)


def test_motion_across_the_asked_direction_earns_nothing(video_BFHWC):
    across = score(video_BFHWC.transpose(2, 3))["motion"]
    assert across.abs().max() < 0.1


def test_jumps_and_flicker_cost_smoothness(video_BFHWC):
    flicker_F = torch.tensor([1.0, 0.7, 1.0, 0.7, 1.0, 0.7, 1.0, 0.7, 1.0])[:, None, None, None]
    smooth = score(video_BFHWC)["smoothness"]
    assert (score(video_BFHWC[:, [0, 5, 2, 7, 4, 1, 6, 3, 8]])["smoothness"] < 0.5 * smooth).all()
    assert (score(video_BFHWC * flicker_F)["smoothness"] < 0.8 * smooth).all()


def test_a_score_does_not_depend_on_the_rest_of_the_batch(video_BFHWC):
    together, alone = score(video_BFHWC), score(video_BFHWC[5:6], TEXT[5:6])
    assert all(torch.allclose(together[name][5:6], alone[name], atol=1e-5) for name in PARTS)


def test_a_dark_video_scores_zero_with_finite_gradients():
    video = torch.zeros(32, 9, 16, 16, 3, requires_grad=True)
    total_B = score(video)["total"]
    total_B.sum().backward()
    assert (total_B == 0).all()
    assert video.grad.isfinite().all()


@pytest.mark.parametrize("name", PARTS)
def test_a_step_up_the_gradient_raises_each_part(video_BFHWC, name):
    noise = torch.rand(video_BFHWC.shape, generator=torch.Generator().manual_seed(1))
    video = (0.5 * video_BFHWC + 0.5 * noise).requires_grad_()
    before_B = score(video)[name]
    (gradient,) = torch.autograd.grad(before_B.sum(), video)
    length_B = gradient.flatten(1).norm(dim=1)[:, None, None, None, None]
    assert (score(video + 0.05 * gradient / length_B)[name] > before_B).all()


def test_a_text_outside_the_tiny_world_is_refused(video_BFHWC):
    with pytest.raises(ValueError, match="not a caption of the tiny world"):
        score(video_BFHWC[:1], ("a cat",))
