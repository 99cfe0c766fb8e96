"""Read `key=value` and `group=option` from a command line, and refuse misspelt ones in a single line, before Hydra does."""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.run.compose import CONF, GROUPS
from flash_grpo.run.settings import ConfigError, check

SWEEP = ("-m", "--multirun")
ONLY_SHOWN = ("-c", "--cfg", "-h", "--help", "-i", "--info", "--hydra-help", "--version", "-sc", "--shell-completion")
NOT_A_RUN = (*SWEEP, *ONLY_SHOWN)  # options with which `sweeps=` is allowed
KINDS = {bool: (bool, "true or false"), int: (int, "an integer"), float: (int | float, "a number")}
LOCAL = ("local_bounded", "submitit_local", "basic")  # launchers that use this machine only
HINTS = {"hydra.launcher.gpus_per_node": "; the type of the GPUs goes to hydra.launcher.gpu_type"}
CHANGEABLE = ("prompts", "evaluation")  # groups whose option may be changed for a finished run, besides reward


def refuse(message: str) -> None:
    """Print the message as one line, whatever values are quoted in it, and end the program with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def in_one_line(error: BaseException) -> str:
    """Return what Hydra or OmegaConf says, and why."""
    said = [str(error), str(error.__cause__ or "").partition("\n")[0]]
    return ": ".join(" ".join(part.split()) for part in said if part)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split command-line arguments into options with their values, and overrides."""
    options, overrides = [], []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        value = previous.startswith("-") and previous not in SWEEP and "=" not in argument and argument[:1] != "~"
        (options if argument.startswith("-") or value else overrides).append(argument)
    return options, overrides


def check_overrides(options: list[str], overrides: list[str]) -> None:
    """Refuse a misspelt key, group, option or value and name what is allowed; Hydra's own messages are longer."""
    parsed = [_parsed(argument) for argument in overrides]
    _check_sweeps(options, parsed)
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(CONF, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = [item for item in parsed if item.key_or_group in loader.list_groups("") or "/" in item.key_or_group]
        for override in groups:
            _check_options(override, loader.get_group_options(override.key_or_group))
        chosen = [f"{item.input_line.split('=')[0]}={value}" for item in groups for value in _values(item)[:1]]
        try:
            cfg = compose("config", overrides=chosen, return_hydra_config=True)
        except HydraException as error:
            refuse(in_one_line(error))
        for override in parsed:
            if override not in groups and override.type == OverrideType.CHANGE:
                _check_key(cfg, override)
        if not any(option in ONLY_SHOWN for option in options):
            _check_composed(options, [_first_of(override) for override in parsed])


def _check_composed(options: list[str], overrides: list[str]) -> None:
    """Refuse a run, the first of a sweep, that could not be made of its configuration, or that would miss its cluster."""
    from hydra import compose

    try:
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        chosen = cfg.hydra.runtime.choices
        if chosen["hydra/launcher"] not in LOCAL and not any(flag in options for flag in SWEEP):
            refuse(
                f"slurm={chosen['slurm']}: only a sweep goes to a cluster, also a sweep of one run: add -m, as in "
                f"`python train.py -m slurm={chosen['slurm']}`; without slurm= the run stays on this machine"
            )
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.overrides.task = overrides
        check(cfg)
    except ConfigError as error:
        refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        refuse(in_one_line(error))


def _first_of(override: Override) -> str:
    """Return the override as the first run of a sweep has it."""
    if not override.is_sweep_override():
        return override.input_line
    if (first := next(override.sweep_string_iterator(), None)) is None:
        refuse(f"{override.input_line}: it holds no value")
    return f"{override.input_line.split('=')[0]}={first}"


def _check_sweeps(options: list[str], overrides: list[Override]) -> None:
    """Refuse overrides that only a sweep can run if -m was not given, and options that exclude each other."""
    if len({option for option in options if option in (*SWEEP, "-c", "--cfg", "-i", "--info", "-r", "--run")}) > 1:
        refuse(f"{' '.join(options)}: choose one of --multirun, --cfg, --info")
    if "--resolve" in options and not {"-c", "--cfg", "-h", "--help"} & {*options}:
        refuse("--resolve: goes with --cfg")
    for override in overrides:
        if override.key_or_group == "sweeps" and not any(flag in options for flag in NOT_A_RUN):
            refuse("sweeps= is a sweep of several runs: add -m, as in `python train.py -m sweeps=ablation`")
        if override.is_sweep_override() and not any(flag in options for flag in SWEEP):
            refuse(f"{override.input_line}: several values are a sweep of several runs: add -m")


def _parsed(argument: str) -> Override:
    if not argument.lstrip("+~").partition("=")[0]:
        refuse(f"{argument}: expected key=value or group=option")
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        lines = [line for line in str(error).splitlines() if not line.startswith("Error parsing override")]
        refuse(f"{argument}: {lines[0]}; expected key=value or group=option")


def _values(override: Override) -> list[Any]:
    """Return the override's value, or the values of a sweep's list; none if only Hydra can find them."""
    if override.type == OverrideType.DEL:
        return []
    values = getattr(override.value(), "list", []) if override.is_sweep_override() else [override.value()]
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def _check_options(override: Override, allowed: list[str]) -> None:
    for option in _values(override):
        if option is not None and str(option) not in allowed:
            refuse(f"{override.key_or_group}={option}: there is no such option; allowed: {', '.join(allowed)}")


def _check_key(cfg: DictConfig, override: Override) -> None:
    """Refuse a key that the configuration lacks, suggesting a similar one, and a value of another type than the default."""
    node: Any = cfg
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        keys = {str(key) for key in node} if isinstance(node, DictConfig) else set()
        if part not in keys and not isinstance(node, ListConfig):
            allowed = sorted(keys - {"hydra"}) + (GROUPS if not depth else [])
            near = difflib.get_close_matches(part, allowed, n=1)
            hint = f"did you mean {'.'.join([*parts[:depth], near[0]])}? " if near else ""
            where = ".".join(parts[:depth]) or "the configuration"
            refuse(f"{override.key_or_group}: {where} has no key {part}; {hint}allowed: {', '.join(allowed) or 'none'}")
        try:
            node = node[part]
        except (
            OmegaConfBaseException,
            ValueError,
        ):  # a missing value (???), or one that is known only when the run starts
            return
    for value in _values(override):
        _check_kind(override.key_or_group, value, node)


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Refuse a value of another kind than the default: section, bool or number; null and interpolations fit any key."""
    if (
        isinstance(default, DictConfig)
        and isinstance(value, list | str | int | float)
        and not str(value).startswith("${")
    ):
        refuse(f"{key}={value}: must be a section of keys; leave it as it is, or set its keys")
    for kind, (allowed, expected) in KINDS.items():
        if isinstance(default, kind):
            fits = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
            if not fits and value is not None and not str(value).startswith("${"):
                refuse(f"{key}={value}: expected {expected}, as in {key}={default}{HINTS.get(key, '')}")
            return


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
