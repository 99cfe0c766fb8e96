"""Refuse a configuration that no run can be made of, in one line that names the key, before anything is built.

Hydra composes any tree. Here it must have the sections and parts that the programs read, and plain values within their
ranges; the values of a part are checked where the part is made, see `algorithm.ranges`. Imports nothing heavy.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flash_grpo.algorithm import ranges
from flash_grpo.hints import ANSWERS
from flash_grpo.records.identity import directory_name


class ConfigError(ValueError):
    """Bad input, described in one line, and found before any work is done."""


_count, _from_zero = ranges.whole, partial(ranges.whole, at_least=0)
_bound = partial(ranges.number, above=0, null=True)
PHASES = ("rollout", "training", "evaluation")  # each may have a guidance of its own
NOISES = ("linear", "flow", "cps", "constant")
TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
VALUES: dict[str, Callable[[str, Any], None]] = {
    "study": directory_name,
    "runs_root": ranges.text,
    "seed": _from_zero,
    "detach": ranges.truth,
    "plan": partial(ranges.one_of, allowed=(None, False, True, "json")),
    "preflight": partial(ranges.one_of, allowed=(None, False, True)),
    "track": partial(ranges.one_of, allowed=(None, *TRACKERS)),
    "device": partial(ranges.one_of, allowed=("auto", "cpu", "cuda")),
    "schedule.noise": partial(ranges.one_of, allowed=NOISES),  # learning rates are chosen by it
    "threads": partial(ranges.whole, at_most=1024),
    "rollout.last_candidate": _from_zero,
    "rollout.batch": _count,
    **{f"{phase}.guidance": partial(ranges.number, at_least=1, at_most=100, null=True) for phase in PHASES},
    "rollout.train_fraction": partial(ranges.number, above=0, at_most=1),
    "training.batch": _count,
    "optim.max_gradient_norm": _bound,
    "checkpoint.every": _count,
    "checkpoint.keep": _count,
    "checkpoint.max_idle_starts": _count,
    "checkpoint.best_by": partial(ranges.one_of, allowed=(None, "reward", "held_out")),
    "stop_when.held_out_falls": partial(ranges.whole, null=True),
    "stop_when.diversity_below": partial(ranges.number, above=0, at_most=1, null=True),
    "stop_when.base_distance_above": _bound,
    "evaluation.every": partial(ranges.number, above=0, at_most=1),
    "run_name": directory_name,
    "planning.device": partial(ranges.text, null=True),
    "planning.gpu_hour_price": partial(ranges.number, at_least=0, null=True),
    "planning.test_prompts": _count,
    "planning.served_reward": partial(ranges.text, null=True),
    "planning.disk_speed": partial(ranges.number, above=0),
    "planning.drawn": ranges.truth,
    "server.port": partial(ranges.whole, at_least=0, at_most=65535),
    "bench.batch": _count,
    "bench.repeats": _count,
    "measure.quantities": partial(ranges.some_of, allowed=("gradient_norm", "variance_share", "alignment")),
    "measure.noises": partial(ranges.some_of, allowed=NOISES),
    "measure.ablations": ranges.some_of,
    "measure.exact_noises": _count,
    "diagnose.iterations": partial(ranges.whole, at_least=2),
    "diagnose.repeats": partial(ranges.whole, at_least=2),
    "diagnose.gain": partial(ranges.number, above=0),
    "diagnose.output": partial(ranges.one_of, allowed=("text", "json")),
}
"""The plain values that a run reads, by key. `optim.max_gradient_norm=null` is no clipping."""

CHECKED_BY_LAYOUT = (
    "rollout.layout.num_prompts", "rollout.layout.group_size",
    "training.epochs", "training.optimizer_steps", "training.shares",
)  # fmt: skip

PARTS = (
    "model", "prompts", "reward", "schedule", "rollout.solve", "rollout.path", "budget", "optim.optimizer", "optim.anneal",
    "method", "method.plan", "method.weigh", "method.target", "method.advantage",
    "evaluation.sampler", "evaluation.sampler.schedule",
)  # fmt: skip
"""What is made by a `_target_`, which decides about the keys beside it."""

PARTS_OR_NULL = ("evaluation.held_out",)
"""What may be left out with null, and is otherwise a part."""

SECTIONS = (
    "rollout", "rollout.layout", "training", "optim", "optim.ema", "checkpoint", "evaluation", "stop_when", "planning",
)  # fmt: skip
"""What only groups keys; a key that nothing reads is refused in it."""

SECTIONS_OR_NULL = ("optim.lora",)

READ_ELSEWHERE = ("bench", "server", "measure", "diagnose")
OPTIONAL = {"optim.lr_of", "optim.ema.decay", "optim.ema.every", "optim.ema.phase"}


NOT_GIVEN = "(not given)"  # stands for a file of prompts that a plan does without


def stand_in_for_prompts(cfg: DictConfig) -> None:
    """Put NOT_GIVEN where a configuration lacks its files of prompts: a plan needs no more than their number."""
    for key in ("train", "test"):
        if OmegaConf.is_dict(cfg.get("prompts")) and OmegaConf.is_missing(cfg.prompts, key):
            cfg.prompts[key] = NOT_GIVEN


def check(cfg: DictConfig) -> None:
    """Raise ConfigError for what is missing, unknown, of another kind or out of range. `cfg.hydra` is ignored."""
    parts = (*PARTS, *(key for key in PARTS_OR_NULL if _selected(cfg, key) is not None))
    chosen = [key for key in SECTIONS_OR_NULL if _selected(cfg, key) is not None]
    for key in (*SECTIONS, *chosen, *parts, *READ_ELSEWHERE):
        if not _section(cfg, key):
            value = ranges.shown(_selected(cfg, key))
            raise ConfigError(f"{key}={value}: must be a section of keys; leave it as it is, or set its keys")
    for key in parts:
        if not isinstance(_selected(cfg, f"{key}._target_"), str):
            raise ConfigError(f"{key}._target_: must name what makes this part, see flash_grpo/conf")
    for line in _missing(cfg):
        raise ConfigError(line)
    check_values(cfg, unused=("run_name",))  # which is made of the others
    for line in (*_dangling(cfg, ""), *_unknown(cfg)):
        raise ConfigError(line)
    check_values(cfg)


def check_values(cfg: DictConfig, unused: tuple[str, ...] = ()) -> None:
    """Raise ConfigError for a plain value out of its range, among those that are there. unused: keys that are not read."""
    for key, fits in VALUES.items():
        section, _, name = key.rpartition(".")
        if key not in unused and name in _section(cfg, section):
            value = _selected(cfg, key)
            try:
                fits(key, value)
            except ValueError as error:
                raise ConfigError(str(error)) from error


def _unknown(cfg: DictConfig) -> Iterator[str]:
    """Yield a line for each key that no program reads: it would be set for nothing."""
    known = {
        *VALUES,
        *CHECKED_BY_LAYOUT,
        *PARTS,
        *PARTS_OR_NULL,
        *SECTIONS,
        *SECTIONS_OR_NULL,
        *READ_ELSEWHERE,
        *OPTIONAL,
    }
    for section in ("", *SECTIONS):
        here = {key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section}
        for name in sorted({str(name) for name in _section(cfg, section)} - here - {"hydra"}):
            where = f"{section}." if section else ""
            known_as = ANSWERS.get(name) or f"{section or 'the configuration'} has {', '.join(sorted(here))}"
            yield f"{where}{name}: nothing reads this key; {known_as}"


def _missing(cfg: DictConfig) -> Iterator[str]:
    for key in (*VALUES, *CHECKED_BY_LAYOUT, *SECTIONS_OR_NULL):
        section, _, name = key.rpartition(".")
        if name not in _section(cfg, section):
            yield f"{key}: is missing; do not delete it, give it a value"


def _section(cfg: DictConfig, key: str) -> DictConfig:
    """Return the section, or the whole configuration for ''; an empty one where there is no such section."""
    node = _selected(cfg, key) if key else cfg
    return node if isinstance(node, DictConfig) and not node._is_none() else DictConfig({})


def _selected(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key; None if it is not there."""
    try:
        return OmegaConf.select(cfg, key)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{key}: must be given") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_leads_nowhere(key, error)) from error


def _dangling(node: Any, key: str) -> Iterator[str]:
    """Yield a line for each key whose interpolation leads nowhere."""
    names = sorted(node, key=lambda name: name == "run_name") if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        inner = f"{key}.{name!s}" if key else str(name)
        if inner == "hydra" or OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            yield _leads_nowhere(inner, error)
            continue
        if isinstance(value, DictConfig | ListConfig) and not value._is_none():
            yield from _dangling(value, inner)


def _leads_nowhere(key: str, error: OmegaConfBaseException) -> str:
    why = " ".join(str(error).partition("\n")[0].split())
    return f"{key}: {why}; give it a value, as in {key}=..."
