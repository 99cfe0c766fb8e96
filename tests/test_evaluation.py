"""The evaluation of one process: what it keeps, and what one prompt can tell."""

from hydra.utils import instantiate

from flash_grpo.rewards.brightness import brightness
from flash_grpo.run.contact_sheet import contact_sheet
from flash_grpo.run.stored import policy_of
from flash_grpo.training.evaluation import CONTACT_SHEET_ROWS, shown
from flash_grpo.training.ranks import Ranks


def _evaluated(config, texts, *overrides):
    cfg = config(*overrides)
    evaluation = instantiate(cfg.evaluation.sampler)
    return evaluation(policy_of(cfg, "cpu"), brightness, texts, Ranks("cpu"))


def test_it_keeps_the_videos_of_a_contact_sheet_and_no_others(config, tmp_path):
    texts = tuple(instantiate(config().prompts).test)
    kept = _evaluated(config, texts).videos
    assert len(texts) == 32 and list(kept) == shown(list(texts)) and len(kept) == CONTACT_SHEET_ROWS
    assert all(video.untyped_storage().nbytes() == video.numel() for video in kept.values())  # not a whole batch
    contact_sheet(tmp_path / "sheet.png", kept)
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_one_prompt_has_no_standard_error_and_shows_none(config):
    one = _evaluated(config, ("a red ball moving right",))
    several = _evaluated(config, tuple(instantiate(config().prompts).test))
    assert one.sem is None and str(one) == f"{one.mean:.3f}"
    assert several.sem > 0 and str(several) == f"{several.mean:.3f} ± {several.sem:.3f}"
