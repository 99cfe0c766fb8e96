"""The evaluation of one process: what it keeps, and what one prompt can tell."""

import pytest
import torch
from hydra.utils import instantiate

from flash_grpo.rewards.brightness import brightness
from flash_grpo.run.build import build
from flash_grpo.run.contact_sheet import contact_sheet
from flash_grpo.training.evaluated import diversity
from flash_grpo.training.evaluation import CONTACT_SHEET_ROWS, shown
from flash_grpo.training.ranks import Ranks


def _evaluated(config, texts, *overrides):
    cfg = config(*overrides)
    evaluation = instantiate(cfg.evaluation.sampler)
    policy = build(cfg.model, "model", device="cpu", lora=cfg.optim.lora)
    policy.keep_base()
    return evaluation(policy, brightness, texts, Ranks("cpu"))


def test_an_evaluation_keeps_the_videos_of_a_contact_sheet_and_no_others(config, tmp_path):
    texts = tuple(instantiate(config().prompts).test)
    kept = _evaluated(config, texts).videos
    assert len(texts) == 32 and list(kept) == shown(list(texts)) and len(kept) == CONTACT_SHEET_ROWS
    assert all(video.untyped_storage().nbytes() == video.numel() for video in kept.values())  # not a whole batch
    contact_sheet(tmp_path / "sheet.png", kept)
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_one_prompt_has_no_standard_error_and_shows_none(config):
    single = _evaluated(config, ("a red ball moving right",))
    several = _evaluated(config, tuple(instantiate(config().prompts).test))
    assert single.sem is None and str(single) == f"{single.mean:.3f}"
    assert several.sem > 0 and str(several) == f"{several.mean:.3f} ± {several.sem:.3f}"


def test_diversity_is_the_mean_pairwise_rms_distance_and_none_for_a_single_video(config):
    black, white, grey = (torch.full((9, 16, 16, 3), value, dtype=torch.uint8) for value in (0, 255, 51))
    videos = torch.stack([torch.stack([black, white, grey]), torch.stack([grey, grey, grey])])
    torch.testing.assert_close(diversity(videos), torch.tensor([(1 + 0.2 + 0.8) / 3, 0.0]))
    texts = tuple(instantiate(config().prompts).test)[:3]
    assert _evaluated(config, texts, "evaluation.sampler.noises_per_prompt=1").diversity is None
    assert 0.01 < _evaluated(config, texts, "evaluation.sampler.noises_per_prompt=3").diversity < 0.5


def test_the_distance_from_the_base_is_zero_before_training_and_that_of_the_velocities_after(config, trainer):
    cfg = config("evaluation.sampler.schedule.num_steps=5")
    evaluation, small = instantiate(cfg.evaluation.sampler), trainer()
    texts = small.prompts.test[:4]
    arguments = (small.policy, brightness, texts, small.ranks)
    assert evaluation(*arguments).base_distance == 0
    with torch.no_grad():
        last = small.policy.transformer.proj_out.bias
        last += 0.5
    assert evaluation(*arguments).base_distance == pytest.approx(0.25, rel=1e-3)
