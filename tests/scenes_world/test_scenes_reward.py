import pytest
import torch

from flash_grpo.scenes_world.clips import COLOURS, GROUNDS, WORDS, asked, captions, parse, render
from flash_grpo.scenes_world.held_out import HeldOutScenesReward
from flash_grpo.scenes_world.reward import FlawedScenesReward, ScenesReward
from flash_grpo.tiny_world.clips import coverage

TEXT = tuple(captions(held_out=True))
PARTS = {"colour": "colour", "motion": "direction", "scene": "ground"}  # part -> an attribute that it judges
REWARDS = (ScenesReward, FlawedScenesReward, HeldOutScenesReward)


@pytest.fixture(scope="module")
def video_BFHWC() -> torch.Tensor:
    return render(asked(TEXT), torch.Generator().manual_seed(0))


def score(video: torch.Tensor, text: tuple[str, ...] = TEXT, reward: type = ScenesReward) -> dict[str, torch.Tensor]:
    return reward().score(video, text)


def changed(name: str, step: int = 1) -> tuple[str, ...]:
    """The captions with the next word of one attribute: none of them describes its clip."""
    index_BA = asked(TEXT)
    place = list(WORDS).index(name)
    index_BA[:, place] = (index_BA[:, place] + step) % len(WORDS[name])
    words = [list(words) for words in WORDS.values()]
    rows = [dict(zip(WORDS, map(list.__getitem__, words, row), strict=True)) for row in index_BA.tolist()]
    return tuple(str(type(parse(TEXT[0]))(**row)) for row in rows)


def test_rendered_clips_score_well_in_each_part(video_BFHWC):
    parts = score(video_BFHWC)
    assert parts["total"].mean() > 2.9
    assert all(parts[name].min() > 0.75 and parts[name].max() <= 1 for name in PARTS)


@pytest.mark.parametrize("reward", REWARDS)
def test_the_total_is_the_sum_of_the_parts_and_uint8_scores_alike(video_BFHWC, reward):
    exact, scores = score(video_BFHWC, reward=reward), reward()((video_BFHWC * 255).round().to(torch.uint8), TEXT)
    assert scores.total_B.dtype == torch.float32
    assert scores.total_B.shape == (96,)
    torch.testing.assert_close(scores.total_B, sum(scores.parts.values()))
    torch.testing.assert_close(scores.total_B, exact["total"], atol=0.05, rtol=0)


@pytest.mark.parametrize("step", range(1, 8))
def test_a_wrong_colour_costs_the_colour_and_nothing_else(video_BFHWC, step):
    right, wrong = score(video_BFHWC), score(video_BFHWC, changed("colour", step))
    assert wrong["colour"].max() < 0.25 < right["colour"].min()
    assert wrong["motion"].equal(right["motion"])
    assert wrong["scene"].equal(right["scene"])


@pytest.mark.parametrize("step", range(1, 4))
def test_a_wrong_direction_costs_two_thirds_of_the_motion_and_the_opposite_all(video_BFHWC, step):
    right, wrong = score(video_BFHWC), score(video_BFHWC, changed("direction", step))
    opposite_B = torch.tensor(
        [
            {parse(a).direction, parse(b).direction} in ({"left", "right"}, {"up", "down"})
            for a, b in zip(TEXT, changed("direction", step), strict=True)
        ]
    )
    assert (wrong["motion"] < 0.45 * right["motion"]).all()
    assert (wrong["motion"][opposite_B] < 0.01).all()
    assert wrong["colour"].equal(right["colour"])


def test_a_wrong_pace_costs_a_third_of_the_motion(video_BFHWC):
    ratio_B = score(video_BFHWC, changed("pace"))["motion"] / score(video_BFHWC)["motion"]
    assert ratio_B.min() > 0.5 and ratio_B.max() < 0.85


@pytest.mark.parametrize("step", [1, 2])
def test_a_wrong_ground_costs_the_scene_and_nothing_else(video_BFHWC, step):
    right, wrong = score(video_BFHWC), score(video_BFHWC, changed("ground", step))
    assert wrong["scene"].max() < 0.05
    assert wrong["colour"].equal(right["colour"])
    assert wrong["motion"].equal(right["motion"])


def test_size_is_none_of_the_trained_parts(video_BFHWC):
    right, other = score(video_BFHWC), score(video_BFHWC, changed("size"))
    assert all(right[name].equal(other[name]) for name in right)


def test_a_ball_that_rests_has_no_motion(video_BFHWC):
    assert score(video_BFHWC[:, :1].expand(-1, 9, -1, -1, -1))["motion"].max() < 0.01


@pytest.mark.parametrize("reward", REWARDS)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(video_BFHWC, reward):
    together, alone = score(video_BFHWC, reward=reward), score(video_BFHWC[5:6], TEXT[5:6], reward=reward)
    assert all(torch.allclose(together[name][5:6], alone[name], atol=1e-5) for name in together)


@pytest.mark.parametrize("reward", REWARDS)
def test_a_frame_of_ground_alone_scores_next_to_nothing_with_finite_gradients(reward):
    video = torch.tensor(list(GROUNDS.values()))[asked(TEXT)[:, 4]][:, None, None, None].expand(-1, 9, 16, 16, -1)
    video = video.clone().requires_grad_()
    total_B = score(video, reward=reward)["total"]
    total_B.sum().backward()
    assert total_B.abs().max() < 0.01
    assert video.grad.isfinite().all()


@pytest.mark.parametrize("name", PARTS)
def test_a_step_up_the_gradient_raises_each_part(video_BFHWC, name):
    other = video_BFHWC.roll(7, dims=0)  # another colour, ground and direction
    video = (0.6 * video_BFHWC + 0.4 * other).requires_grad_()
    before_B = score(video)[name]
    (gradient,) = torch.autograd.grad(before_B.sum(), video)
    steep_B = gradient.flatten(1).norm(dim=1)
    moved = video + 0.01 * gradient / steep_B.clamp(min=1e-6)[:, None, None, None, None]
    rises_B = score(moved)[name] > before_B
    assert steep_B.median() > 1e-3
    assert rises_B[steep_B > 1e-3].all()


@pytest.mark.parametrize("reward", REWARDS)
def test_a_text_outside_the_scenes_world_is_refused(video_BFHWC, reward):
    with pytest.raises(ValueError, match="not a caption of the scenes world"):
        score(video_BFHWC[:1], ("a cat",), reward)
    with pytest.raises(ValueError, match="not a caption of the scenes world"):
        reward.check_texts(("a cat",))


@pytest.mark.parametrize(
    ("reward", "values"),
    [
        (ScenesReward, {"colour_temperature": 0}),
        (ScenesReward, {"ground_temperature": float("nan")}),
        (FlawedScenesReward, {"full_area": -1}),
        (HeldOutScenesReward, {"area_tolerance": 0}),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_its_key(reward, values):
    with pytest.raises(ValueError, match=f"reward.{next(iter(values))}="):
        reward(**values)


def test_the_held_out_parts_are_highest_for_the_right_size_and_a_clean_picture(video_BFHWC):
    parts = score(video_BFHWC, reward=HeldOutScenesReward)
    other = score(video_BFHWC, changed("size"), HeldOutScenesReward)
    noisy = (video_BFHWC + 0.2 * torch.randn(video_BFHWC.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert parts["size"].mean() > 0.9 and other["size"].mean() < 0.15
    assert parts["fidelity"].min() > 0.99
    assert other["fidelity"].equal(parts["fidelity"])
    assert (score(noisy, reward=HeldOutScenesReward)["fidelity"] < parts["fidelity"] - 0.1).all()


def bloated(index_BA: torch.Tensor, radius: float) -> torch.Tensor:
    """A ball of the asked colour in the middle of the asked ground, of any radius."""
    centre_BF2 = torch.full((len(index_BA), 9, 2), 8.0)
    cover = coverage(torch.full((len(index_BA), 1), radius), centre_BF2, torch.ones(1, 1, dtype=torch.bool))[..., None]
    colour, ground = (
        torch.tensor(list(words.values()))[index_BA[:, place]][:, None, None, None]
        for words, place in ((COLOURS, 0), (GROUNDS, 4))
    )
    return ground + cover * (colour - ground)


def test_the_planted_flaw_pays_for_bloated_balls_which_the_held_out_reward_sees(video_BFHWC):
    hacked = bloated(asked(TEXT), 7.0)
    assert (
        score(hacked, reward=FlawedScenesReward)["total"] > score(video_BFHWC, reward=FlawedScenesReward)["total"] + 1
    ).all()
    assert (score(hacked)["total"] < score(video_BFHWC)["total"] - 0.8).all()
    clean, seen = (score(video, reward=HeldOutScenesReward) for video in (video_BFHWC, hacked))
    assert (seen["total"] < clean["total"] - 0.5).all()
    assert seen["size"].mean() < 0.2
