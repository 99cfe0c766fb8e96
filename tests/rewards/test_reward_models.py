"""The scorers' real code and preprocessing on small random models of the same architectures."""

import pytest
import small_qwen
import torch
from safetensors.torch import save_file
from small_qwen import TEXTS
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, Qwen2VLForConditionalGeneration

from flash_grpo.algorithm.protocols import score_flops
from flash_grpo.algorithm.types import Scores
from flash_grpo.recompose import composed_outside
from flash_grpo.rewards.brightness import brightness
from flash_grpo.rewards.clip import Aesthetic, PickScore, aesthetic_head
from flash_grpo.rewards.composite import CompositeReward
from flash_grpo.rewards.frames import FrameReward
from flash_grpo.rewards.hpsv3 import REWARD_TOKEN, HPSv3, packaged_instruction
from flash_grpo.run.build import build


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """CLIP of width 32 for images of 16 x 16, with its preprocessing and its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 24,
    }
    text = {**sizes, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 3, "bos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPConfig(
            text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=24
        )
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    small_qwen.word_tokenizer([]).save_pretrained(folder)
    return folder


def test_pickscore_is_the_scaled_cosine_of_text_and_image(clip_folder, images):
    scorer = PickScore(str(clip_folder), str(clip_folder))
    score = scorer(images, TEXTS)
    assert score.shape == (2,) and score.abs().max() <= scorer._model.logit_scale.exp()
    own, other = scorer(images, TEXTS), scorer(images, TEXTS[::-1])
    assert not torch.allclose(own, other)
    alone = torch.cat([scorer(images[index : index + 1], TEXTS[index : index + 1]) for index in range(2)])
    torch.testing.assert_close(alone, score, atol=1e-4, rtol=1e-4)  # padding changes nothing
    assert torch.isfinite(scorer(images[:1], ["cat " * 100])).all()  # longer than CLIP reads


def test_aesthetic_reads_the_published_head(clip_folder, images, tmp_path):
    head = aesthetic_head(24)
    published = {f"layers.{name}": value for name, value in head.state_dict().items()}
    assert list(published)[::2] == [f"layers.{index}.weight" for index in (0, 2, 4, 6, 7)]  # as in its .pth
    torch.save(published, tmp_path / "head.pth")
    scorer = Aesthetic(str(clip_folder), str(tmp_path / "head.pth"))
    assert torch.equal(scorer(images, TEXTS), scorer(images, TEXTS[::-1]))
    with pytest.raises(ValueError, match="there is no such file"):
        Aesthetic(str(clip_folder), str(tmp_path / "nowhere.pth"))


def test_the_error_for_a_missing_hub_model_says_how_to_fetch_it():
    with pytest.raises(ValueError, match=r"hf download some/model --revision abc"):
        PickScore("some/model", "some/model", revision="abc")


@pytest.fixture(scope="module")
def hpsv3(tmp_path_factory):
    """Base folder and weights as published: transformers 4.45's names, lm_head included, float32 head."""
    base, weights = tmp_path_factory.mktemp("qwen"), tmp_path_factory.mktemp("weights")
    config = small_qwen.write(base, more_tokens=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = Qwen2VLForConditionalGeneration(config).eval()
        head = torch.nn.Sequential(
            torch.nn.Linear(32, 1024), torch.nn.ReLU(), torch.nn.Dropout(0.05), torch.nn.Linear(1024, 16),
            torch.nn.ReLU(), torch.nn.Linear(16, 2),
        ).eval()  # fmt: skip
    state = {small_qwen.published(name): value.clone() for name, value in whole.state_dict().items()}
    state |= {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    save_file(state, weights / "HPSv3.safetensors")
    return base, weights, whole, head


def _hpsv3(base, weights, **options):
    instruction = "{text_prompt} rate " + REWARD_TOKEN + " rate"
    options = {"instruction": instruction, "dtype": "float32", "pixels": 16 * 28 * 28, **options}
    return HPSv3(path=str(weights), base=str(base), **options)


def test_hpsv3_is_the_heads_first_output_at_the_reward_token(hpsv3, images):
    base, weights, whole, head = hpsv3
    scorer = _hpsv3(base, weights)
    inputs = scorer.prepared(list(map(_image, images)), TEXTS)
    grid = inputs.image_grid_thw
    assert grid.tolist() == [[1, 8, 10]] * 2  # 40 x 56 enlarged to 112 x 140, at least 16 x 28 x 28 pixels
    assert (inputs.input_ids == whole.config.image_token_id).sum() == grid.prod(-1).sum() // 4
    with (
        torch.no_grad()
    ):  # as the package computes it: embeddings with the image scattered in, positions that count tokens
        embedded = whole.model.language_model.embed_tokens(inputs.input_ids)
        seen = whole.model.visual(inputs.pixel_values, grid_thw=grid).pooler_output
        marks = (inputs.input_ids == whole.config.image_token_id)[..., None].expand_as(embedded)
        hidden = whole.model.language_model(
            inputs_embeds=embedded.masked_scatter(marks, seen),
            attention_mask=inputs.attention_mask,
            position_ids=torch.arange(embedded.shape[1]).expand(3, 2, -1),
        ).last_hidden_state
        token = scorer._tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        expected = head(hidden[inputs.input_ids == token])[:, 0]
    torch.testing.assert_close(scorer(images, TEXTS), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(scorer(images, TEXTS[::-1]), expected, atol=1e-5)
    assert not torch.allclose(scorer(images.flip(0), TEXTS), expected, atol=1e-5)


def test_hpsv3_refuses_other_weights_and_another_instruction(hpsv3, images, tmp_path):
    base, weights, *_ = hpsv3
    with pytest.raises(ValueError, match=r"HPSv3\.safetensors is not there"):
        _hpsv3(base, tmp_path)
    with pytest.raises(ValueError, match="exactly once"):
        _hpsv3(base, weights, instruction="{text_prompt}")(images, TEXTS)


def test_hpsv3_instruction_is_read_from_its_package_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps hpsv3"):
        packaged_instruction()
    monkeypatch.undo()
    source = tmp_path / "hpsv3" / "dataset" / "data_collator_qwen.py"
    source.parent.mkdir(parents=True)
    (tmp_path / "hpsv3" / "__init__.py").touch()
    source.write_text(
        f"import nowhere_to_be_found\nINSTRUCTION = 'of {{text_prompt}}'\nprompt_with_special_token = ' {REWARD_TOKEN}'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packaged_instruction().format(text_prompt="a cat") == f"of a cat {REWARD_TOKEN}"


def _image(array):
    from PIL import Image

    return Image.fromarray(array.numpy())


def _by_brightness(image_NHWC, text):
    return image_NHWC.float().flatten(1).mean(1)


def test_an_image_reward_scores_every_nth_frame_or_the_best_ones():
    video = (torch.arange(10) * 10).reshape(1, 10, 1, 1, 1).expand(2, 10, 2, 2, 3).to(torch.uint8)
    best = FrameReward(name="x", scorer=_by_brightness, best=0.3, batch=3)(video, ("a", "b"))
    assert best.total_B.tolist() == [80.0, 80.0]
    assert {name: part[0].item() for name, part in best.parts.items()} == {
        "x": 80.0,
        "x_frame_mean": 45.0,
        "x_frame_min": 0.0,
    }
    third = FrameReward(name="x", scorer=_by_brightness, every=3)(video, ("a", "b"))
    assert third.total_B.tolist() == [45.0, 45.0]  # frames 0, 3, 6, 9
    assert FrameReward(name="x", scorer=_by_brightness, best=0.01)(video, ("a", "b")).total_B[0] == 90
    with pytest.raises(ValueError, match=r"reward\.every=0"):
        FrameReward(name="x", scorer=_by_brightness, every=0)


def test_the_composite_of_the_configuration_holds_rewards(clip_folder, tmp_path):
    torch.save({f"layers.{k}": v for k, v in aesthetic_head(24).state_dict().items()}, tmp_path / "head.pth")
    cfg = composed_outside(["reward=composite", "device=cpu"])
    pickscore, aesthetic = cfg.reward.rewards.pickscore.scorer, cfg.reward.rewards.aesthetic.scorer
    pickscore.path = pickscore.processor = aesthetic.path = str(clip_folder)
    aesthetic.head = str(tmp_path / "head.pth")
    video = torch.randint(0, 256, (2, 5, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scores = build(cfg.reward, "reward")(video, tuple(TEXTS))
    torch.testing.assert_close(scores.total_B, scores.parts["pickscore"] + scores.parts["aesthetic"])


def test_composite_weighs_by_name():
    def always(value, seconds=0.0):
        return lambda video, text: Scores(total_B=torch.full((len(text),), value), parts={}, device_seconds=seconds)

    both = CompositeReward(rewards={"a": always(1.0, 2.0), "b": always(10.0)}, weights={"a": 2.0, "b": 0.5})
    scores = both(torch.zeros(2, 1, 1, 1, 3), ("x", "y"))
    assert scores.total_B.tolist() == [7.0, 7.0] and scores.device_seconds == 2.0
    assert {name: part[0].item() for name, part in scores.parts.items()} == {"a": 1.0, "b": 10.0}
    with pytest.raises(ValueError, match=r"reward\.weights"):
        CompositeReward(rewards={"a": always(1.0)}, weights={"b": 1.0})


def test_hpsv3_counts_the_flops_that_its_model_computes(hpsv3, images):
    scorer = _hpsv3(*hpsv3[:2])
    scorer.model.trunk.set_attn_implementation("eager")
    head = small_qwen.counted(lambda: scorer.model.head(torch.zeros(1, 1, small_qwen.WIDTH)))
    whole = small_qwen.counted(lambda: scorer(images[:1], TEXTS[:1]))
    assert scorer.flops(tuple(images.shape[1:]), TEXTS[0]) == whole - head > 0


def test_a_frame_reward_counts_its_frames_and_a_composite_its_parts(clip_folder, images):
    scorer = PickScore(str(clip_folder), str(clip_folder))
    longest = scorer._model.config.text_config.max_position_embeddings
    scorer._model.set_attn_implementation("eager")
    image = small_qwen.counted(lambda: scorer(images[:1], ["cat " * longest]))
    frames, shape = FrameReward(name="x", scorer=scorer, every=4), (9, *images.shape[1:])
    assert score_flops(frames, shape, "cat") == 3 * image > 0  # frames 0, 4 and 8
    assert score_flops(FrameReward(name="x", scorer=_by_brightness), shape, "cat") == 0
    both = CompositeReward(rewards={"a": frames, "b": brightness}, weights={"a": 1.0, "b": 1.0})
    assert score_flops(both, shape, "cat") == 3 * image
