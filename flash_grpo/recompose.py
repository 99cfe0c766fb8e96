"""Compose configurations outside `train.py`: a reward by its name, or a finished run's configuration with changes."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.overrides import check_overrides
from flash_grpo.run.compose import CONF, GROUPS

CHANGEABLE = ("prompts", "evaluation")  # groups whose option may be changed for a finished run, besides reward


def composed_outside(overrides: list[str]) -> DictConfig:
    """Compose a configuration for a program that is not a `cli.command`; bad overrides end it with exit code 2."""
    from hydra import compose, initialize_config_dir

    check_overrides([], overrides)
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", overrides=overrides)


def changed(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a finished run's configuration with some values, the prompts or the evaluation changed.

    A stored configuration is resolved, so Hydra cannot compose it again. ValueError if an override does not fit.
    """
    for item in overrides:
        key, equals, _ = item.lstrip("+").partition("=")
        if not equals:
            raise ValueError(f"{item}: expected key=value")
        if key in CHANGEABLE:
            cfg[key] = OmegaConf.to_container(composed_outside([item])[key])
        elif key in GROUPS or OmegaConf.is_dict(cfg.get(key)):
            raise ValueError(f"{item}: of a run only reward, prompts and evaluation can be chosen anew")
        else:
            OmegaConf.set_struct(cfg, not item.startswith("+"))
            try:
                cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist([item.lstrip("+")]))
            except OmegaConfBaseException as error:
                raise ValueError(f"{item}: {str(error).splitlines()[0]}") from error
            OmegaConf.set_struct(cfg, False)
    return cfg


def composed_rewards(names: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Compose options of the reward group; several become a sum with equal weights, each recorded under its own name.

    overrides: `reward.key=value` for a single reward, `reward.NAME.key=value` for one of several. ValueError if an override
    names none of the rewards.
    """
    rewards, left = {}, list(overrides)
    for name in names:
        mine = [item for item in left if len(names) == 1 or item.lstrip("+").startswith(f"reward.{name}.")]
        own = [item.replace(f"reward.{name}.", "reward.", 1) for item in mine]
        rewards[name] = OmegaConf.to_container(composed_outside([f"reward={name}", *own]).reward)
        left = [item for item in left if item not in mine]
    if left:
        raise ValueError(f"{left[0]}: of which reward? reward.NAME.key=value, NAME one of {', '.join(names)}")
    composite = {
        "_target_": "flash_grpo.rewards.composite.CompositeReward",
        "_convert_": "all",  # Hydra would otherwise make dictionaries of rewards that are dataclasses
        "rewards": rewards,
        "weights": dict.fromkeys(names, 1.0),
    }
    return composite if len(names) > 1 else rewards[names[0]]
