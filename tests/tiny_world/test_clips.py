import pytest
import torch

from flash_grpo.tiny_world.clips import COLOURS, captions, colour_of, direction_of, parse, render


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_there_are_32_captions_and_each_parses_to_itself():
    assert len(set(captions())) == 32
    assert captions()[0] == "a red ball moving left"
    assert [str(parse(text)) for text in captions()] == captions()


@pytest.mark.parametrize("text", ["a purple ball moving left", "", "a red ball"])
def test_an_unknown_caption_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=f"'{text}'.*red.*square.*left"):
        parse(text)


def test_each_clip_shows_the_asked_colour():
    video_BFHWC = render(captions(), generator())
    brightest_B = video_BFHWC.sum(-1).flatten(1).argmax(1)
    shown_BC = video_BFHWC.flatten(1, 3)[torch.arange(32), brightest_B]
    assert torch.cdist(shown_BC, torch.tensor(list(COLOURS.values()))).argmin(1).equal(colour_of(captions()))


def test_up_is_towards_the_first_row():
    row_F = render(["a red ball moving up"], generator())[0, ..., 0].sum(2).argmax(1)
    assert row_F[0] > row_F[-1]


def test_each_shape_moves_the_asked_way_by_6_to_9_pixels():
    weight_BFHW = (render(captions(), generator()) - 0.05).sum(-1)
    x_W = torch.arange(16.0)
    moment_BF2 = torch.stack([weight_BFHW.sum(2) @ x_W, weight_BFHW.sum(3) @ x_W], dim=-1)
    way_B2 = (moment_BF2 / weight_BFHW.sum((2, 3))[..., None]).diff(dim=1).sum(1)
    along_B = (way_B2 * direction_of(captions())).sum(-1)
    assert along_B.min() > 5
    assert along_B.max() < 9.5
    assert (way_B2 - along_B[:, None] * direction_of(captions())).abs().max() < 0.5


def test_clips_are_drawn_from_the_given_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    video = render(captions(), generator(1))
    assert video.shape == (32, 9, 16, 16, 3)
    assert video.min() >= 0
    assert video.max() <= 1
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert render(captions(), generator(1)).equal(video)
    assert not render(captions(), generator(2)).equal(video)


def test_a_square_fills_corners_that_a_ball_leaves_dark():
    ball, square = (render([f"a red {shape} moving left"], generator()) for shape in ("ball", "square"))
    assert (square - ball).max() > 0.1
