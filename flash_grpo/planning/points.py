"""List the runs that a command line would start, exactly as the queue would get them, without a launcher.

Hydra takes 0.1 s to compose a point. Points that choose the same options of the groups are one composition, on whose copies the
other values are set, as Hydra itself does; points that differ in their seed alone are one `Arm`.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from flash_grpo.cluster.points import kept_params
from flash_grpo.records.identity import directory_name
from flash_grpo.run.compose import CONF
from flash_grpo.run.settings import ConfigError

SWEEPER = "hydra_plugins.flash_grpo_plugins.sweeper.OverridableSweeper"


@dataclass(kw_only=True)
class Arm:
    """Runs that differ in nothing but their seed, and so cost the same. cfg: of one of them. seeds, runs: of all, in order."""

    cfg: DictConfig
    seeds: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line would start. launcher: the settings of `hydra.launcher`, None of a single run on this machine."""

    arms: list[Arm]
    launcher: dict[str, Any] | None
    slurm: str


def asked(overrides: list[str], multirun: bool) -> Asked:
    """Compose every run of a command line. ConfigError as the queue would refuse; Hydra's errors as Hydra raises them."""
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        mode = RunMode.MULTIRUN if multirun else RunMode.RUN
        master = hydra.compose_config("config", overrides, run_mode=mode, with_log_configuration=False)
        if not multirun and master.hydra.mode != RunMode.MULTIRUN:
            return Asked(arms=_arms([([], master)]), launcher=None, slurm="")
        return Asked(
            arms=_arms(_composed(hydra, master, _points(master))),
            launcher=_plain(master.hydra.launcher),
            slurm=str(master.hydra.runtime.choices.get("slurm")),
        )


def _points(master: DictConfig) -> list[list[str]]:
    """Return the overrides of every point of the sweep, as `hydra/sweeper=overridable` makes them."""
    if master.hydra.sweeper._target_ != SWEEPER:
        raise ConfigError("hydra/sweeper: plan=true knows the points of hydra/sweeper=overridable only; leave it out")
    arguments = list(master.hydra.overrides.task)
    params = kept_params(master.hydra.sweeper.params, arguments)
    given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = OverridesParser.create().parse_overrides(given)
    return [point for batch in BasicSweeper.split_arguments(parsed, None) for point in batch]


def _composed(hydra: Hydra, master: DictConfig, points: list[list[str]]) -> list[tuple[list[str], DictConfig]]:
    """Compose the points; those that differ in their seed alone share one object, see `_arms`."""
    loader, parse = hydra.config_loader, _parser()
    groups, made, found = set(loader.list_groups("")), dict[tuple[str, ...], DictConfig](), []
    for point in points:
        values = [item for item in point if _sets_a_value(parse(item), groups)]
        shared, key = tuple(item for item in point if item not in values), tuple(sorted(without_seed(point)))
        if shared not in made:
            made[shared] = loader.load_sweep_config(master, list(shared))
        if key not in made:
            made[key] = copy.deepcopy(made[shared])
            for item in values:
                OmegaConf.update(made[key], parse(item).key_or_group, parse(item).value(), merge=True)
        found.append((point, made[key]))
    return found


def _arms(composed: Sequence[tuple[list[str], DictConfig]]) -> list[Arm]:
    """Gather the points by arm, and name each run as it will be named. ConfigError where two have one directory."""
    arms = dict[int, Arm]()
    for point, cfg in composed:
        arm = arms.setdefault(id(cfg), Arm(cfg=cfg))
        seeds = [item.partition("=")[2] for item in point if item.startswith("seed=")]
        with open_dict(cfg):
            cfg.seed = int(seeds[0]) if seeds and seeds[0].lstrip("-").isdigit() else cfg.seed
            OmegaConf.set_readonly(cfg.hydra, False)
            cfg.hydra.overrides.task = point or cfg.hydra.overrides.task
        arm.seeds.append(cfg.seed)
        arm.runs.append(_directory(cfg))
    shared = [run for run, count in Counter(run for arm in arms.values() for run in arm.runs).items() if count > 1]
    if shared:
        raise ConfigError(f"several runs of this sweep have one directory: {', '.join(shared)}")
    return list(arms.values())


def _directory(cfg: DictConfig) -> str:
    for key in ("study", "run_name"):
        try:
            directory_name(key, OmegaConf.select(cfg, key))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return f"{cfg.runs_root}/{cfg.study}/{cfg.run_name}"


def without_seed(point: list[str]) -> list[str]:
    """Return a point's overrides but for its seed.

    >>> without_seed(["method=full", "seed=3"])
    ['method=full']
    """
    return [item for item in point if not item.startswith("seed=")]


def _parser() -> Callable[[str], Override]:
    parser, known = OverridesParser.create(), dict[str, Override]()

    def parse(item: str) -> Override:
        if item not in known:
            known[item] = parser.parse_override(item)
        return known[item]

    return parse


def _sets_a_value(override: Override, groups: set[str]) -> bool:
    """Return True if the override sets a value of the composed tree, and does not take part in composing it."""
    key = override.key_or_group
    return override.type == OverrideType.CHANGE and key not in groups and not key.startswith("hydra") and "/" not in key


def _plain(node: DictConfig) -> dict[str, Any]:
    """Return the launcher's settings as plain values; what only Hydra can resolve, as the submission's folder, is left out."""
    keys = [str(key) for key in node if str(key) not in ("submitit_folder", "name")]
    return {key: OmegaConf.to_container(node[key]) if OmegaConf.is_config(node[key]) else node[key] for key in keys}
