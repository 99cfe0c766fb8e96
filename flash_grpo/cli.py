"""The command line: `python train.py` and `python train.py -m`. Imports nothing heavy, so that `--help` is quick."""

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Sweep
from omegaconf import DictConfig, ListConfig, OmegaConf

CONF = str(Path(__file__).parent / "conf")
GROUPS = ["ablations", "recipe", "slurm", "sweeps"]
NOT_A_RUN = ("-m", "--multirun", "-c", "--cfg", "-h", "--help", "-i", "--info")
PLACE = ("study", "runs_root", "run_name", "sweeps", "slurm", "seed", "method", "ablations", "threads", "device")


def distinguishing_name(overrides: list[str], method: str, seed: int) -> str:
    """The run's name: its method, whatever else was asked for on the command line, its seed.

    >>> distinguishing_name(["method=full", "schedule.noise=flow", "study=x"], "full", 3)
    'full-schedule.noise=flow-seed3'
    """
    asked = [item.lstrip("+~") for item in overrides]
    told = sorted(item for item in asked if item.split("=")[0] not in PLACE and not item.startswith("hydra"))
    return "-".join([method, *told, f"seed{seed}"]).replace("/", ":").replace(" ", "")


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
            refuse(str(error))

    def main() -> None:
        check_overrides(sys.argv[1:])
        guarded()

    return main


def train(cfg: DictConfig) -> None:
    from flash_grpo import run

    try:
        directory = run.run(cfg, cfg.run_name)
    except run.RewardError as error:
        sys.exit(f"stopped: {error}")
    except (run.Interrupted, KeyboardInterrupt) as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(130)
    print(run.summary(directory))


main = command(train)


def refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def check_overrides(arguments: list[str]) -> None:
    """Names a misspelt key, group option or value and what is allowed; Hydra's own message names only the first."""
    if any(argument.startswith("sweeps=") for argument in arguments) and not any(flag in arguments for flag in NOT_A_RUN):
        refuse("sweeps= is a sweep of several runs: add -m, as in `python train.py -m sweeps=ablation`")
    asked = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(asked)
    except Exception as error:  # the parser's own error classes are not public
        refuse(f"{' '.join(asked)}: {str(error).splitlines()[0]}")
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(CONF, version_base="1.3"):
        groups = [override for override in overrides if _is_group(override)]
        try:
            cfg = compose("config", overrides=[text for override in groups for text in [_first(override)]])
        except HydraException as error:
            told = str(error).split("Config search path")[0]
            refuse(" ".join(line.strip() for line in told.splitlines() if line.strip()))
        for override in overrides:
            if override not in groups and override.type == OverrideType.CHANGE and not override.key_or_group.startswith("hydra."):
                _check_key(cfg, override)


def _is_group(override: Override) -> bool:
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    return override.key_or_group in loader.list_groups("") or "/" in override.key_or_group


def _first(override: Override) -> str:
    value = next(override.sweep_string_iterator()) if override.is_sweep_override() else override.get_value_string()
    return f"{override.input_line.split('=')[0]}={value}"


def _check_key(cfg: DictConfig, override: Override) -> None:
    node: Any = cfg
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig | ListConfig) or (isinstance(node, DictConfig) and part not in node):
            allowed = sorted(str(key) for key in node) if isinstance(node, DictConfig) else []
            allowed += GROUPS if not depth else []
            near = difflib.get_close_matches(part, allowed, n=1)
            hint = f"did you mean {'.'.join([*parts[:depth], near[0]])}? " if near else ""
            where = ".".join(parts[:depth]) or "the configuration"
            refuse(f"{override.key_or_group}: {where} has no key {part}; {hint}allowed: {', '.join(allowed) or 'none'}")
        node = OmegaConf.to_container(node)[part] if OmegaConf.is_missing(node, part) or OmegaConf.is_interpolation(node, part) else node[part]
    values = override.value().list if isinstance(override.value(), Sweep) and hasattr(override.value(), "list") else [override.value()]
    for value in values:
        if isinstance(node, int | float) and not isinstance(node, bool) and isinstance(value, str | bool):
            refuse(f"{override.key_or_group}={value}: expected a number, as in {override.key_or_group}={node}")


if __name__ == "__main__":
    main()
