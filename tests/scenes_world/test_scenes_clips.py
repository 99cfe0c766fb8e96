from collections import Counter
from itertools import product

import pytest
import torch

from flash_grpo.scenes_world import clips
from flash_grpo.scenes_world.clips import COLOURS, PACES, SIZES, WORDS, asked, captions, parse, render, values_of
from flash_grpo.scenes_world.prompts import from_scenes
from flash_grpo.tiny_world.clips import DIRECTIONS

TRAIN, HELD_OUT = captions(held_out=False), captions(held_out=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(texts: list[str]) -> Counter:
    return Counter((parse(text).colour, parse(text).direction) for text in texts)


def test_288_captions_are_trained_on_and_96_others_are_held_out():
    assert (len(set(TRAIN)), len(set(HELD_OUT))) == (288, 96)
    assert not set(TRAIN) & set(HELD_OUT)
    assert len({*TRAIN, *HELD_OUT}) == len(list(product(*WORDS.values())))
    assert TRAIN[0] == "a small red ball moving slowly right over night"
    assert from_scenes().train == tuple(TRAIN) and from_scenes().test == tuple(HELD_OUT)


def test_a_held_out_caption_joins_seen_words_to_a_colour_and_direction_never_said_together():
    assert not set(pairs(TRAIN)) & set(pairs(HELD_OUT))
    assert {word for text in HELD_OUT for word in text.split()} == {word for text in TRAIN for word in text.split()}


def test_each_colour_lacks_one_direction_and_each_direction_two_colours():
    assert Counter(colour for colour, _ in pairs(HELD_OUT)) == dict.fromkeys(COLOURS, 1)
    assert Counter(direction for _, direction in pairs(HELD_OUT)) == dict.fromkeys(DIRECTIONS, 2)


@pytest.mark.parametrize("name", WORDS)
def test_both_sets_ask_equally_often_for_every_word(name):
    for texts in (TRAIN, HELD_OUT):
        said = Counter(getattr(parse(text), name) for text in texts)
        assert said == dict.fromkeys(WORDS[name], len(texts) // len(WORDS[name]))


@pytest.mark.parametrize("text", ["a red ball moving left", "", "a small red ball moving slowly left over snow"])
def test_an_unknown_caption_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=f"'{text}'.*small|large.*red.*left.*night"):
        parse(text)


def test_captions_come_back_from_their_indices():
    index_BA = asked(TRAIN)
    words = [list(words) for words in WORDS.values()]
    said = [
        clips.Caption(**dict(zip(WORDS, map(list.__getitem__, words, row), strict=True))) for row in index_BA.tolist()
    ]
    assert [str(caption) for caption in said] == TRAIN


def test_each_clip_shows_colour_ground_size_and_way():
    index_BA = asked(HELD_OUT)
    video_BFHWC = render(index_BA, generator())
    ground_BC, colour_BC = values_of(index_BA, "ground"), values_of(index_BA, "colour")
    torch.testing.assert_close(video_BFHWC.flatten(1, 3).median(1).values, ground_BC, atol=0.03, rtol=0)
    cover_BFHW = (video_BFHWC - ground_BC[:, None, None, None]).norm(dim=-1) / (colour_BC - ground_BC).norm(dim=1)[
        :, None, None, None
    ]
    assert cover_BFHW.flatten(1).amax(1).min() > 0.75
    radius_B = (cover_BFHW.sum((2, 3)).mean(1) / torch.pi).sqrt()
    assert radius_B[index_BA[:, 1] == 0].max() < 0.5 * sum(SIZES.values()) + 0.3 < radius_B[index_BA[:, 1] == 1].min()
    x_W = torch.arange(16.0)
    moment_BF2 = torch.stack([cover_BFHW.sum(2) @ x_W, cover_BFHW.sum(3) @ x_W], dim=-1)
    way_B2 = (moment_BF2 / cover_BFHW.sum((2, 3))[..., None]).diff(dim=1).sum(1)
    wanted_B2 = values_of(index_BA, "direction") * values_of(index_BA, "pace")[:, None]
    assert (way_B2 - wanted_B2).norm(dim=1).max() < 1.5 < (PACES["fast"] - PACES["slowly"]) / 2


def test_clips_are_drawn_from_the_given_generator_alone():
    before = torch.get_rng_state()
    video = render(asked(TRAIN), generator(1))
    assert video.shape == (288, 9, 16, 16, 3)
    assert video.min() >= 0
    assert video.max() <= 1
    assert torch.get_rng_state().equal(before)
    assert render(asked(TRAIN), generator(1)).equal(video)
    assert not render(asked(TRAIN), generator(2)).equal(video)
