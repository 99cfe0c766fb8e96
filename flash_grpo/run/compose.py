"""Compose configurations, and name each run by the settings that distinguish it."""

import hashlib
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flash_grpo.records.identity import is_in_name

CONF = str(Path(__file__).parents[1] / "conf")
GROUPS = ["ablations", "recipe", "slurm", "sweeps"]
LONGEST_NAME = 200  # bytes of a directory's name; file systems allow 255


def distinguishing_name(overrides: list[str], method: str, seed: int) -> str:
    """Return the run's name: its method, the overrides that distinguish it, its seed.

    overrides: of the command line. A name that is too long is cut and gets a hash.

    >>> distinguishing_name(["method=full", "schedule.noise=flow", "study=x"], "full", 3)
    'full-schedule.noise=flow-seed3'
    """
    keys = {item: item.split("=")[0] for item in (override.lstrip("+~") for override in overrides)}
    distinguishing = sorted(item for item, key in keys.items() if is_in_name(key))
    name = "-".join([str(method), *distinguishing, f"seed{seed}"]).replace("/", ":")
    name = "".join(character for character in name if character.isprintable() and character != " ").lstrip(".")
    return name if len(name.encode()) <= LONGEST_NAME else _cut(name.encode(), seed)


def _cut(name: bytes, seed: int) -> str:
    beginning, digest = name[: LONGEST_NAME - 32].decode(errors="ignore"), hashlib.sha256(name).hexdigest()[:8]
    return f"{beginning}…{digest}-seed{str(seed)[:10]}"


def _resolve_name(*, _root_: DictConfig) -> str:
    overrides = _root_.hydra.overrides.task if "hydra" in _root_ else HydraConfig.get().overrides.task
    return distinguishing_name(list(overrides), _root_.method.name, _root_.seed)


OmegaConf.register_new_resolver("distinguishing_name", _resolve_name, replace=True)


def composed(overrides: list[str]) -> DictConfig:
    """Compose another configuration inside a `cli.command`, where Hydra is already initialised."""
    from hydra import compose

    return compose("config", overrides=overrides)
