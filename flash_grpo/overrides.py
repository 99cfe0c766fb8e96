"""Refuse a misspelt key, group, option or value in one line, before Hydra looks."""

import difflib
import sys
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.run.compose import CONF, GROUPS

SWEEP = ("-m", "--multirun")


NOT_A_RUN = (*SWEEP, "-c", "--cfg", "-h", "--help", "-i", "--info")


KINDS = {bool: (bool, "true or false"), int: (int, "an integer"), float: (int | float, "a number")}


def refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and overrides."""
    options, asked = [], []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        value = previous.startswith("-") and previous not in SWEEP and "=" not in argument and argument[:1] != "~"
        (options if argument.startswith("-") or value else asked).append(argument)
    return options, asked


def check_overrides(options: list[str], asked: list[str]) -> None:
    """Names a misspelt key, group, option or value and what is allowed, before Hydra, whose messages are longer, looks."""
    overrides = [_parsed(argument) for argument in asked]
    for override in overrides:
        if override.key_or_group == "sweeps" and not any(flag in options for flag in NOT_A_RUN):
            refuse("sweeps= is a sweep of several runs: add -m, as in `python train.py -m sweeps=ablation`")
        if override.is_sweep_override() and not any(flag in options for flag in SWEEP):
            refuse(f"{override.input_line}: several values are a sweep of several runs: add -m")
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(CONF, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = [item for item in overrides if item.key_or_group in loader.list_groups("") or "/" in item.key_or_group]
        for override in groups:
            _check_options(override, loader.get_group_options(override.key_or_group))
        chosen = [f"{item.input_line.split('=')[0]}={value}" for item in groups for value in _values(item)[:1]]
        try:
            cfg = compose("config", overrides=chosen, return_hydra_config=True)
        except HydraException as error:
            refuse(" ".join(str(error).split()))
        for override in overrides:
            if override not in groups and override.type == OverrideType.CHANGE:
                _check_key(cfg, override)


def _parsed(argument: str) -> Override:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        told = [line for line in str(error).splitlines() if not line.startswith("Error parsing override")]
        refuse(f"{argument}: {told[0]}; expected key=value or group=option")


def _values(override: Override) -> list[Any]:
    """What the override asks for: one value, those of a list to sweep over, none where only Hydra can tell."""
    if override.type == OverrideType.DEL:
        return []
    values = getattr(override.value(), "list", []) if override.is_sweep_override() else [override.value()]
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def _check_options(override: Override, allowed: list[str]) -> None:
    for option in _values(override):
        if option is not None and str(option) not in allowed:
            refuse(f"{override.key_or_group}={option}: there is no such option; allowed: {', '.join(allowed)}")


def _check_key(cfg: DictConfig, override: Override) -> None:
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
        except (OmegaConfBaseException, ValueError):  # ???, or known only when the run starts
            return
    for value in _values(override):
        _check_kind(override.key_or_group, value, node)


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Where the default is a truth value or a number, so must the value be; null and interpolations fit everywhere."""
    for kind, (allowed, told) in KINDS.items():
        if isinstance(default, kind):
            fits = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
            if not fits and value is not None and not str(value).startswith("${"):
                refuse(f"{key}={value}: expected {told}, as in {key}={default}")
            return


def composed_outside(overrides: list[str]) -> DictConfig:
    """A configuration for a program that is no `command`; bad overrides end it with one line and exit code 2."""
    from hydra import compose, initialize_config_dir

    check_overrides([], overrides)
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", overrides=overrides)
