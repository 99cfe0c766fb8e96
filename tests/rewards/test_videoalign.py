"""VideoReward's real code and preprocessing on a small random model, from a checkpoint in the published layout."""

import json

import peft
import pytest
import small_qwen
import torch
from small_qwen import TEXTS
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from flash_grpo.rewards.videoalign import MIN_PIXELS, PARTS, TOKENS, WEIGHTS, VideoAlign

MOMENTS = {"VQ_mean": 0.1, "VQ_std": 2.0, "MQ_mean": -0.2, "MQ_std": 0.5, "TA_mean": 0.0, "TA_std": 4.0}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Base folder, weights folder, prompt_template.py, and the model as peft saved it."""
    base, weights = tmp_path_factory.mktemp("qwen"), tmp_path_factory.mktemp("weights")
    config = small_qwen.write(base, more_tokens=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = Qwen2VLForConditionalGeneration(config)
        whole.rm_head = torch.nn.Linear(small_qwen.WIDTH, 1, bias=False)
        linear = [name for name, module in whole.named_modules() if isinstance(module, torch.nn.Linear)]
        targets = [name for name in linear if "language_model" in name]
        tuned = peft.get_peft_model(whole, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
        for name, value in tuned.named_parameters():
            if ".lora_B." in name:  # zero as peft makes it
                torch.nn.init.normal_(value, std=0.2)
    (weights / WEIGHTS).parent.mkdir()
    state = {small_qwen.published(name): value for name, value in tuned.state_dict().items()}
    assert "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight" in state
    torch.save(state, weights / WEIGHTS)
    described = {"inference_config": MOMENTS, "peft_lora_config": {"lora_r": 4, "lora_alpha": 8}}
    (weights / "model_config.json").write_text(json.dumps(described))
    template = base / "prompt_template.py"
    instruction = f"rate {TOKENS[0]} rate {TOKENS[1]} rate {{text_prompt}} {TOKENS[2]} rate"
    template.write_text(f"import nowhere\nDETAILED_PROMPT_WITH_SPECIAL_TOKEN = {instruction!r}\n")
    return base, weights, template, tuned.base_model.model


@pytest.fixture(scope="module")
def video():
    """Two videos of 5 frames, [2, 5, 280, 364, 3]: a size that Qwen2-VL takes as it is."""
    small = torch.rand(10, 3, 10, 13, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(small, (280, 364)).byte().unflatten(0, (2, 5)).movedim(2, -1).contiguous()


def _reward(published, **options):
    base, weights, template, _ = published
    options = {"path": str(weights), "instruction": str(template), "dtype": "float32", "batch": 2, **options}
    return VideoAlign(base=str(base), **options)


def _patches(frames_FHWC):
    """Qwen2-VL's layout: pairs of frames, blocks of 2 x 2 patches, then within a patch colour, frame, height, width."""
    pairs, height, width = len(frames_FHWC) // 2, frames_FHWC.shape[1] // 28, frames_FHWC.shape[2] // 28
    mean, std = Qwen2VLImageProcessorPil.image_mean, Qwen2VLImageProcessorPil.image_std
    shown = (frames_FHWC / 255 - torch.tensor(mean)) / torch.tensor(std)
    blocks = shown.reshape(pairs, 2, height, 2, 14, width, 2, 14, 3)
    return blocks.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).flatten(0, 4).flatten(1)


@torch.no_grad()
def _logits(published, inputs):
    """As the published code computes: patches scattered in, positions that count tokens, one head at three tokens."""
    *_, whole = published
    embedded = whole.model.language_model.embed_tokens(inputs.input_ids)
    seen = whole.model.visual(inputs.pixel_values_videos, grid_thw=inputs.video_grid_thw).pooler_output
    marks = (inputs.input_ids == whole.config.video_token_id)[..., None].expand_as(embedded)
    hidden = whole.model.language_model(
        inputs_embeds=embedded.masked_scatter(marks, seen),
        attention_mask=inputs.attention_mask,
        position_ids=torch.arange(embedded.shape[1]).expand(3, 2, -1),
    ).last_hidden_state
    first = whole.get_input_embeddings().num_embeddings - 3  # the reward tokens are the last three
    return whole.rm_head(hidden[inputs.input_ids >= first]).reshape(2, 3)


def test_videoalign_is_the_heads_output_at_the_three_tokens_in_standard_deviations(published, video):
    reward = _reward(published)
    inputs = reward.prepared(video, TEXTS)
    assert inputs.video_grid_thw.tolist() == [[2, 20, 26]] * 2  # frames 0, 1, 3, 4 in two pairs
    expected = torch.cat([_patches(clip[[0, 1, 3, 4]]) for clip in video])
    torch.testing.assert_close(inputs.pixel_values_videos, expected, atol=1e-5, rtol=1e-5)
    scores, logit_B3 = reward(video, tuple(TEXTS)), _logits(published, inputs)
    for index, part in enumerate(PARTS):
        own = (logit_B3[:, index] - MOMENTS[f"{part}_mean"]) / MOMENTS[f"{part}_std"]
        torch.testing.assert_close(scores.parts[part], own, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores.total_B, sum(scores.parts.values()))
    assert logit_B3.std(1).min() > 1e-3  # the three differ


def test_text_frames_and_their_order_matter_and_the_batch_does_not(published, video):
    reward = _reward(published)
    scores = reward(video, tuple(TEXTS))
    assert not torch.allclose(reward(video, tuple(TEXTS[::-1])).parts["TA"], scores.parts["TA"], atol=1e-5)
    assert not torch.allclose(reward(video.flip(0), tuple(TEXTS)).total_B, scores.total_B, atol=1e-5)
    assert not torch.allclose(reward(video.flip(1), tuple(TEXTS)).parts["MQ"], scores.parts["MQ"], atol=1e-5)
    torch.testing.assert_close(
        reward(video.flip(0), tuple(TEXTS[::-1])).total_B, scores.total_B.flip(0), atol=1e-4, rtol=1e-4
    )
    alone = _reward(published, batch=1)(video, tuple(TEXTS))
    torch.testing.assert_close(alone.total_B, scores.total_B, atol=1e-4, rtol=1e-4)


def test_scores_read_before_the_text_do_not_depend_on_the_text(published, video):
    """Causal attention: VQ and MQ stand before the text, so only TA may know it."""
    reward = _reward(published)
    first, second = (reward(video[:1], (text,)).parts for text in TEXTS)
    torch.testing.assert_close(first["VQ"], second["VQ"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first["MQ"], second["MQ"], atol=1e-5, rtol=1e-5)
    assert abs(first["TA"] - second["TA"]) > 1e-4


def test_adapters_have_the_scale_that_their_configuration_tells(published, video, tmp_path):
    def scores(**lora):
        described = json.loads((published[1] / "model_config.json").read_text())
        described["peft_lora_config"] |= lora
        (tmp_path / "model_config.json").write_text(json.dumps(described))
        return _reward(published, path=str(tmp_path))(video, tuple(TEXTS)).total_B

    (tmp_path / WEIGHTS).parent.mkdir()
    (tmp_path / WEIGHTS).symlink_to(published[1] / WEIGHTS)
    rank_stabilized = scores(use_rslora=True)  # 8 / sqrt(4)
    torch.testing.assert_close(rank_stabilized, scores(lora_alpha=16))  # 16 / 4
    assert not torch.allclose(rank_stabilized, scores(use_rslora=False), atol=1e-4)


def test_frames_are_taken_two_a_second_or_every_nth(published):
    reward = _reward(published)
    assert reward.frames(81) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]  # 5 s at 2 a second, as VideoAlign rounds
    assert reward.frames(9) == [0, 3, 5, 8] and reward.frames(2) == [0, 1]
    assert _reward(published, every=3).frames(10) == [0, 3, 6, 9]
    assert _reward(published, every=4).frames(10) == [0, 4, 8, 8]
    with pytest.raises(ValueError, match="at least 2 frames, not 1"):
        reward.frames(1)


def test_frames_are_resized_as_for_training(published):
    wan = torch.zeros(1, 9, 480, 832, 3, dtype=torch.uint8)
    assert _reward(published).prepared(wan, TEXTS[:1]).video_grid_thw.tolist() == [[2, 24, 42]]  # 336 x 588
    tiny = torch.zeros(1, 9, 16, 16, 3, dtype=torch.uint8)
    assert _reward(published).prepared(tiny, TEXTS[:1]).video_grid_thw.tolist() == [[2, 24, 24]]  # at least 100,352


def test_videoalign_runs_in_bfloat16_as_saved(published, video):
    half, full = (_reward(published, dtype=dtype)(video, tuple(TEXTS)) for dtype in ("bfloat16", "float32"))
    torch.testing.assert_close(half.total_B, full.total_B, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "some/model", "revision": "abc"}, r"reward\.path=.*hf download some/model --revision abc"),
        ({"instruction": None}, r"reward\.instruction=None: .*git clone https://github.com/KwaiVGI/VideoAlign"),
        ({"path": "."}, r"reward\.path: model_config.json is not there"),
        ({"every": 0}, r"reward\.every=0"),
        ({"pixels": 100}, rf"reward\.pixels=100: .*at least {MIN_PIXELS}"),
    ],
)
def test_a_missing_or_wrong_setting_is_named_in_one_line(published, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        _reward(published, **options)
    assert "\n" not in str(caught.value)


def test_other_weights_and_another_instruction_are_refused(published, video, tmp_path):
    weights = published[1]
    (tmp_path / "model_config.json").write_bytes((weights / "model_config.json").read_bytes())
    with pytest.raises(ValueError, match=r"model\.pth is not there"):
        _reward(published, path=str(tmp_path))
    (tmp_path / WEIGHTS).parent.mkdir()
    state = torch.load(weights / WEIGHTS)
    torch.save({name: value for name, value in state.items() if "visual" not in name}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="not the weights of this model; missing"):
        _reward(published, path=str(tmp_path))
    torch.save({**state, "base_model.model.rm_head.weight": torch.zeros(1, 7)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"not the weights of this model; size mismatch for head\.weight") as caught:
        _reward(published, path=str(tmp_path))
    assert "\n" not in str(caught.value)
    other = tmp_path / "prompt_template.py"
    other.write_text(f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = '{{text_prompt}} {TOKENS[0]} {TOKENS[1]}'")
    with pytest.raises(ValueError, match="exactly once"):
        _reward(published, instruction=str(other))(video, tuple(TEXTS))


def test_the_flops_are_what_the_model_computes(published, video):
    """Its adapters included; only the head is left out."""
    reward = _reward(published)
    reward.model.trunk.set_attn_implementation("eager")
    head = small_qwen.counted(lambda: reward.model.head(torch.zeros(1, 3, small_qwen.WIDTH)))
    whole = small_qwen.counted(lambda: reward(video[:1], TEXTS[:1]))
    assert reward.flops(tuple(video.shape[1:]), TEXTS[0]) == whole - head > 0
