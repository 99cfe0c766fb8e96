"""Read `key=value` and `group=option` from a command line, and refuse misspelt ones in a single line, before Hydra does."""

import difflib
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.arguments import refuse
from flash_grpo.hints import ANSWERS, as_override, as_several, as_written, first_key, quoted, where_it_is
from flash_grpo.run.compose import CONF, GROUPS
from flash_grpo.run.settings import ConfigError, check, stand_in_for_prompts

SWEEP = ("-m", "--multirun")
COMPLETION = ("-sc", "--shell-completion")
ONLY_SHOWN = ("-c", "--cfg", "-h", "--help", "-i", "--info", "--hydra-help", "--version", *COMPLETION)
NOT_A_RUN = (*SWEEP, *ONLY_SHOWN)  # options with which `sweeps=` is allowed
INSTEAD = ("plan", "preflight")  # keys that ask something in place of a run
KINDS = {bool: (bool, "true or false"), int: (int, "an integer"), float: (int | float, "a number")}
LOCAL = ("local_bounded", "submitit_local", "basic")  # launchers that use this machine only
HINTS = {"hydra.launcher.gpus_per_node": "the type of the GPUs goes to hydra.launcher.gpu_type"}


def in_one_line(error: BaseException) -> str:
    """Return what Hydra or OmegaConf says, and why."""
    said = [str(error), str(error.__cause__ or "").partition("\n")[0]]
    return ": ".join(" ".join(part.split()) for part in said if part)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split command-line arguments into options with their values, and overrides."""
    options, overrides = [], []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        free = ("=" not in argument and argument[:1] != "~") or previous in COMPLETION
        value = previous.startswith("-") and previous not in SWEEP and free
        (options if argument.startswith("-") or value else overrides).append(argument)
    return options, overrides


def check_overrides(options: list[str], overrides: list[str]) -> tuple[str, Any] | None:
    """Refuse a misspelt key, group, option or value and name what is allowed; Hydra's own messages are longer.

    Return what is asked in place of a run, `plan` or `preflight`, and its value, as the command line or a file that it
    chooses sets it; None for a run, and where a configuration is only to be shown.
    """
    _check_options_of_hydra(options)
    parsed = [_parsed(*around) for around in zip(overrides, _behind(overrides), ["", *overrides], strict=False)]
    _check_sweeps(options, parsed)
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(CONF, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        known = loader.list_groups("")  # reads the groups' files each time
        groups = [item for item in parsed if item.key_or_group in known or "/" in item.key_or_group]
        for override in groups:
            _check_choice(override, loader.get_group_options(override.key_or_group))
        chosen = [f"{item.input_line.split('=')[0]}={value}" for item in groups for value in _values(item)[:1]]
        try:
            cfg = compose("config", overrides=chosen, return_hydra_config=True)
        except HydraException as error:
            other = any(item.key_or_group == "hydra/launcher" for item in groups)
            refuse("hydra/launcher: comes with a cluster's shape, slurm=NAME" if other else in_one_line(error))
        for override in parsed:
            if override not in groups and override.type == OverrideType.CHANGE:
                _check_key(cfg, override)
        if any(option in ONLY_SHOWN for option in options):
            return None
        return _check_composed(options, [_first_of(override) for override in parsed])


def _check_composed(options: list[str], overrides: list[str]) -> tuple[str, Any] | None:
    """Refuse a run, the first of a sweep, that could not be made of its configuration, or that would miss its cluster.

    Return what is asked in place of it, see `check_overrides`.
    """
    from hydra import compose

    try:
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        chosen = cfg.hydra.runtime.choices
        elsewhere = chosen["hydra/launcher"] not in LOCAL
        if elsewhere and not cfg.preflight and not any(flag in options for flag in SWEEP):
            refuse(
                f"slurm={chosen['slurm']}: only a sweep goes to a cluster, also a sweep of one run: add -m, as in "
                f"`python train.py -m slurm={chosen['slurm']}`; without slurm= the run stays on this machine"
            )
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.overrides.task = overrides
        for key in {*INSTEAD} & {*(cfg.hydra.sweeper.get("params") or {})}:
            refuse(f"hydra.sweeper.params: {key} cannot be swept over; give {key}=true on the command line")
        if cfg.plan:
            stand_in_for_prompts(cfg)
        check(cfg)
        asked = [(key, cfg[key]) for key in INSTEAD if cfg[key]]
        if len(asked) > 1:
            refuse("plan, preflight: ask for one of them; preflight=true shows the plan too, by what it measures")
        return asked[0] if asked else None
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
        if (key := override.key_or_group) in INSTEAD and override.is_sweep_override():
            refuse(f"{override.input_line}: {key} cannot be swept over; give {key}=true, or leave it out")
        if override.is_sweep_override() and not any(flag in options for flag in SWEEP):
            refuse(
                f"{override.input_line}: several values are a sweep of several runs: add -m; "
                f"one value with a comma is quoted twice: {quoted(override.input_line)}"
            )


def _check_options_of_hydra(options: list[str]) -> None:
    """Refuse an option that Hydra lacks, whose own message is its whole usage."""
    known = list(get_args_parser()._option_string_actions)
    for option, following in zip_longest(options, options[1:], fillvalue=""):
        name = option.split("=")[0]
        if option.startswith("-") and name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8 if name.startswith("--") else 1.0)
            hint = f"did you mean {near[0]}?" if near else as_override(option, following)
            refuse(f"{option}: there is no such option; {hint}")
        if option in ("-c", "--cfg") and following not in ("job", "hydra", "all"):
            refuse(f"{option}: expected job, hydra or all, as in --cfg job")
        if option in ("-h", "--help") and following and not following.startswith("-"):
            refuse(
                f"{option} {following}: takes no word; `--cfg job --package {following}` shows the values of {following}"
            )


def _behind(overrides: list[str]) -> list[list[str]]:
    return [overrides[index:] for index in range(1, len(overrides) + 1)]


def _parsed(argument: str, following: list[str], previous: str) -> Override:
    """Parse one override. following, previous: the arguments around it, by which a space too many is known."""
    try:
        if not argument.lstrip("+~").partition("=")[0]:
            raise HydraException("")
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        expected = "expected key=value or group=option"
        refuse("; ".join(filter(None, [f"{argument}: {expected}", as_written(argument, following, previous)])))


def _values(override: Override) -> list[Any]:
    """Return the override's value, or the values of a sweep's list; none if only Hydra can find them."""
    if override.type == OverrideType.DEL:
        return []
    values = getattr(override.value(), "list", []) if override.is_sweep_override() else [override.value()]
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def _check_choice(override: Override, allowed: list[str]) -> None:
    for option in _values(override):
        if option is not None and str(option) not in allowed:
            refuse(
                f"{override.input_line.partition('=')[0]}={option}: there is no such option; allowed: {', '.join(allowed)}"
            )


def _check_key(cfg: DictConfig, override: Override) -> None:
    """Refuse a key that the configuration lacks, saying where it is, and a value of another type than the default."""
    node: Any = cfg
    key = override.key_or_group
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, ListConfig) and part not in _keys(node):
            refuse(f"{key}: {_lacks(cfg, node, parts, depth)}")
        try:
            node = node[part]
        except (OmegaConfBaseException, ValueError):  # ???, or a value that is known only when the run starts
            return
    for value in _values(override):
        _check_kind(key, value, node)


def _lacks(cfg: DictConfig, node: Any, parts: list[str], depth: int) -> str:
    """Say what a section lacks, where the key is instead, and what the section allows."""
    part, key = parts[depth], ".".join(parts)
    allowed = sorted(_keys(node) - {"hydra"}) + (GROUPS if not depth else [])
    similar = [".".join([*parts[:depth], name]) for name in difflib.get_close_matches(part, allowed, n=1)]
    if answer := ANSWERS.get(part) or ANSWERS.get(f"{parts[0]}."):
        hint = answer
    elif depth and (options := _options_with(parts)):
        hint = f"{parts[0]}={' or '.join(options)} has it: {parts[0]}={options[0]} {key}=VALUE"
    elif found := where_it_is(cfg, key) or similar:
        hint = f"did you mean {' or '.join(found[:3])}?"
    else:
        hint = f"allowed: {', '.join(allowed) or 'none'}"
    return f"{'.'.join(parts[:depth]) or 'the configuration'} has no key {part}; {hint}"


def _keys(node: Any) -> set[str]:
    """Return a section's keys, also those that must be given."""
    return {str(key) for key in node} if isinstance(node, DictConfig) else set()


def _options_with(parts: list[str]) -> list[str]:
    """Return the options of a group that have this key."""
    *above, last = parts[1:]
    found = []
    for file in sorted(Path(CONF, parts[0]).glob("*.yaml")):
        node = OmegaConf.load(file)
        section = OmegaConf.select(node, ".".join(above)) if above else node
        found += [file.stem] if last in _keys(section) else []
    return found


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Refuse a value of another kind than the default: section, bool or number; null and interpolations fit any key."""
    if (
        isinstance(default, DictConfig)
        and isinstance(value, list | str | int | float)
        and not str(value).startswith("${")
    ):
        example = f"{key}.{first_key(default)}=VALUE"
        refuse(f"{key}={value}: must be a section of keys; leave it as it is, or set its keys, as in {example}")
    for kind, (allowed, expected) in KINDS.items():
        if isinstance(default, kind):
            fits = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
            if not fits and value is not None and not str(value).startswith("${"):
                hints = [f"expected {expected}, as in {key}={default}", HINTS.get(key, ""), as_several(key, value)]
                refuse(f"{key}={value}: {'; '.join(filter(None, hints))}")
            return
