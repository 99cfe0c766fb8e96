"""What a configuration must have before anything is built; the refusals themselves are in tests/commands/test_cli.py."""

import pytest
from omegaconf import OmegaConf

from flash_grpo.algorithm.schedule import NOISE_LEVELS
from flash_grpo.run.settings import NOISES, ConfigError, check, check_values


def test_the_sdes_by_which_rates_are_chosen_are_those_of_the_schedule():
    assert tuple(NOISE_LEVELS) == NOISES


def test_a_composed_configuration_passes_and_every_section_is_needed(config):
    cfg = config()
    check(cfg)
    for section in ("rollout", "rollout.layout", "training", "checkpoint", "evaluation", "method.plan"):
        broken = config()
        OmegaConf.set_struct(broken, False)
        OmegaConf.update(broken, section, None)
        with pytest.raises(ConfigError, match=rf"^{section}=null: must be a section"):
            check(broken)


def test_the_values_of_an_earlier_version_s_run_are_checked_though_keys_are_missing():
    old = OmegaConf.create({"seed": 3, "training": {"batch": 0}})
    with pytest.raises(ConfigError, match=r"^training\.batch=0: must be an integer, at least 1$"):
        check_values(old)
    check_values(OmegaConf.create({"seed": 3}))
