"""The command line: `python train.py` and `python train.py -m`. Imports nothing heavy, so that `--help` is quick."""

import difflib
import hashlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.identity import PROMPT_FILES, is_identity

CONF = str(Path(__file__).parent / "conf")
GROUPS = ["ablations", "recipe", "slurm", "sweeps"]
LONGEST_NAME = 200  # of a directory; file systems allow 255 bytes
SWEEP = ("-m", "--multirun")
NOT_A_RUN = (*SWEEP, "-c", "--cfg", "-h", "--help", "-i", "--info")
KINDS = {bool: (bool, "true or false"), int: (int, "an integer"), float: (int | float, "a number")}
NOT_IN_NAME = ("sweeps", "slurm", "seed", "method", "ablations", "threads", "device")  # or in it anyway


def distinguishing_name(overrides: list[str], method: str, seed: int) -> str:
    """The run's name: its method, whatever else was asked for on the command line, its seed.

    >>> distinguishing_name(["method=full", "schedule.noise=flow", "study=x"], "full", 3)
    'full-schedule.noise=flow-seed3'
    """
    asked = [item.lstrip("+~") for item in overrides]
    keys = {item: item.split("=")[0] for item in asked}
    told = sorted(item for item, key in keys.items() if _is_told(key))
    name = "-".join([method, *told, f"seed{seed}"]).replace("/", ":").replace(" ", "")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 20]}…{hashlib.sha256(name.encode()).hexdigest()[:8]}-seed{seed}"


def _is_told(key: str) -> bool:
    if key.split(".")[0] == "hydra" or key in NOT_IN_NAME:
        return False
    return is_identity(key) or key in PROMPT_FILES


def _resolve_name(*, _root_: DictConfig) -> str:
    overrides = _root_.hydra.overrides.task if "hydra" in _root_ else HydraConfig.get().overrides.task
    return distinguishing_name(list(overrides), _root_.method.name, _root_.seed)


OmegaConf.register_new_resolver("distinguishing_name", _resolve_name, replace=True)


def command(task: Callable[[DictConfig], None]) -> Callable[[], None]:
    """`task` as a Hydra program over the suite's configuration; bad input ends it with one line and exit code 2."""

    @hydra.main(version_base="1.3", config_path=CONF, config_name="config")
    def guarded(cfg: DictConfig) -> None:
        from flash_grpo.run import ConfigError

        try:
            task(cfg)
        except ConfigError as error:
            if "SLURM_JOB_ID" in os.environ:  # into the rank's log
                traceback.print_exc()
            refuse(str(error))

    def main() -> None:
        options, asked = split(sys.argv[1:])
        check_overrides(options, asked)
        sys.argv[1:] = [*options, *asked]  # Hydra would refuse `train.py seed=1 -m sweeps=demo`
        guarded()

    return main


def composed(overrides: list[str]) -> DictConfig:
    """Another configuration, asked for from inside a `command`."""
    from hydra import compose

    return compose("config", overrides=overrides)


def composed_outside(overrides: list[str]) -> DictConfig:
    """A configuration for a program that is no `command`; bad overrides end it with one line and exit code 2."""
    from hydra import compose, initialize_config_dir

    check_overrides([], overrides)
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", overrides=overrides)


def train(cfg: DictConfig) -> None:
    from flash_grpo import run
    from flash_grpo.rollout import DivergedError
    from flash_grpo.trainer import DriftError, RewardError

    try:
        directory = run.run(cfg, cfg.run_name)
    except (RewardError, DriftError, DivergedError) as error:
        if "SLURM_JOB_ID" in os.environ:  # into the rank's log
            traceback.print_exc()
        sys.exit(f"stopped: {error}")
    except (run.Interrupted, KeyboardInterrupt) as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(130)
    print(run.summary(directory))


main = command(train)


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


if __name__ == "__main__":
    main()
