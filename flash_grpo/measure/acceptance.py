"""Measure on a device, stage by stage, what this suite claims of real models: with random weights, at their real sizes."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hydra import initialize_config_dir
from omegaconf import DictConfig

from flash_grpo.measure import acceptance_runs, real_size
from flash_grpo.measure.stopwatch import digits, seconds
from flash_grpo.planning.devices import device_named
from flash_grpo.planning.plan import plan_of
from flash_grpo.run import compose
from flash_grpo.run.settings import ConfigError

BACKENDS = ("native", "_native_cudnn", "flash", "_flash_3")  # of attention, those that need no download
FEW_STEPS = (
    "schedule.num_steps=2",
    "rollout.last_candidate=0",
    "bench.repeats=1",
)  # rates do not depend on their number
SMALL = (  # the real architecture on a CPU, in seconds
    "model.architecture={num_attention_heads: 2, attention_head_dim: 24, ffn_dim: 32, num_layers: 2}",
    "model.frames=1", "model.height=64", "model.width=64", "model.max_text_tokens=4", "model.gradient_checkpointing=true",
)  # fmt: skip


@dataclass(frozen=True)
class Here:
    """Where stages run. gpu: False for a rehearsal on a CPU, with small sizes and without compiling."""

    gpu: bool

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.gpu else "cpu"

    def overrides(self, recipe: str, *more: str) -> list[str]:
        """Return the settings of a recipe with random weights and without files, at its real size on a GPU."""
        plain = ("model.weights=random", "prompts=shapes", "reward=brightness", "method.name=flash")
        where = f"device={'cuda' if self.gpu else 'cpu'}"
        return [f"recipe={recipe}", *plain, *FEW_STEPS, where, *(() if self.gpu else SMALL), *more]


@contextmanager
def configuration(overrides: list[str]) -> Iterator[DictConfig]:
    """Compose a configuration; inside the block others can be composed too, as inside a command."""
    with initialize_config_dir(compose.CONF, version_base="1.3"):
        yield compose.composed([*overrides, "run_name=acceptance"])


def matmul(here: Here, done: dict[str, Any]) -> dict[str, Any]:
    """Measure the rate that the device reaches in products of large matrices in bfloat16."""
    side, repeats = (8192, 20) if here.gpu else (512, 5)
    factor = torch.ones(side, side, dtype=torch.bfloat16, device="cuda" if here.gpu else "cpu")
    factor @ factor
    took = seconds(lambda: [factor @ factor for _ in range(repeats)], here.gpu)
    return {"side": side, "tflop_per_second": digits(2e-12 * side**3 * repeats / took)}


def phases(here: Here, done: dict[str, Any]) -> dict[str, Any]:
    """Measure rollout, decode and update of the 1.3B, with each attention that is there, and compiled."""
    attention = BACKENDS if here.gpu else BACKENDS[:1]
    variants = {f"attention={name}": [f"model.attention={name}"] for name in attention}
    if here.gpu:
        variants["compile"] = ["model.compile=true"]
    return {name: _tried(here, done, "wan21_1p3b", *more) for name, more in variants.items()}


def large(here: Here, done: dict[str, Any]) -> dict[str, Any]:
    """Measure the same of the 14B, whole on one device."""
    return {"14B": _tried(here, done, "wan21_14b", "model.shard=false")}


def _tried(here: Here, done: dict[str, Any], recipe: str, *more: str) -> dict[str, Any]:
    """Measure the phases of a recipe; {"failed": why} where the device or its libraries lack something."""
    gc.collect()  # what the variant before has left
    if here.gpu:
        torch.cuda.empty_cache()
    return _or_why_not(lambda: _phases(here, done, here.overrides(recipe, *more)))


def _or_why_not(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured, or {"failed": why}: the others are measured all the same."""
    try:
        return measure()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _phases(here: Here, done: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Measure the phases, each beside its share of the matmul rate and the memory that the plan predicts."""
    with configuration(overrides) as cfg:
        found, clip = real_size.measure(cfg), cfg.method.ratio_clip
    predicted, rate = _predicted(here, overrides), done.get("matmul", {}).get("tflop_per_second")
    for name, phase in found["phases"].items():
        phase["predicted_gigabytes"] = predicted.get(name)
        if rate and phase["tflop_per_second"]:
            phase["share_of_matmul"] = digits(phase["tflop_per_second"] / rate)
    return {**found, "ratio_clip": clip, "drifts": found["ratio_drift"] > clip}


def _predicted(here: Here, overrides: list[str]) -> dict[str, float]:
    """Return the GB of each phase's peak by the plan; {} for a device that its table lacks."""
    try:
        device = device_named(here.name, "").name if here.gpu else "cpu"
    except ConfigError:
        return {}
    arm = plan_of([*overrides, f"planning.device={device}"], multirun=False).arms[0]
    return {name: digits(sum(terms.values()) / 1e9) for name, terms in arm.needs.memory.items()}


Stage = Callable[[Here, dict[str, Any]], dict[str, Any]]
STAGES: dict[str, Stage] = {
    "matmul": matmul,
    "phases": phases,
    "large": large,
    "resume": lambda here, done: acceptance_runs.resume(here.gpu),
    "shard": lambda here, done: _checked(here, acceptance_runs.shard),
    "export": lambda here, done: _checked(here, acceptance_runs.export),
}


def _checked(here: Here, check: Callable[[DictConfig], dict[str, Any]]) -> dict[str, Any]:
    """Run a check on two layers of the 1.3B in float32, so that what should be equal is nearly so."""
    with configuration(here.overrides("wan21_1p3b", "model.dtype=float32", "model.architecture.num_layers=2")) as cfg:
        return check(cfg)


def measured(
    here: Here, names: list[str], say: Callable[[str], None], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run these stages; as each ends, say it in a line and keep what has been measured so far."""
    done: dict[str, Any] = {"device": here.name, "torch": torch.__version__, "rehearsal": not here.gpu}
    for name in names:
        start = time.perf_counter()
        done[name] = _or_why_not(partial(STAGES[name], here, done))
        say(f"{name}: {_in_a_line(done[name])} ({time.perf_counter() - start:.0f} s)")
        keep(done)
    return done


def not_accepted(found: dict[str, Any]) -> list[str]:
    """Return why a device is not accepted, a line each; a variant that it lacks is no reason while one of the stage runs."""
    lines = [f"{name}: {found[name]['failed']}" for name in STAGES if "failed" in found.get(name, {})]
    for stage in ("phases", "large"):
        variants = found.get(stage, {})
        if variants and "failed" not in variants and all("failed" in one for one in variants.values()):
            lines.append(f"{stage}: none of {', '.join(variants)} could be measured")
        drifting = [name for name, one in variants.items() if isinstance(one, dict) and one.get("drifts")]
        lines += [f"{stage}, {name}: ratios drift beyond the clip range before any update" for name in drifting]
    if not found.get("resume", {}).get("bit_identical", True):
        lines.append("resume: the run that was killed did not end bit-identical to the one that was not")
    return lines


def _in_a_line(found: dict[str, Any]) -> str:
    """Return the numbers of a stage in a line: of phases their seconds, memory against the prediction, and the drift."""
    variants = {name: value for name, value in found.items() if isinstance(value, dict)}
    if not variants:
        return ", ".join(f"{name} {value}" for name, value in found.items())
    return "; ".join(f"{name}: {_of_variant(value)}" for name, value in variants.items())


def _of_variant(found: dict[str, Any]) -> str:
    if "failed" in found:
        return found["failed"]
    parts = [
        f"{name} {phase['seconds']:.3g} s, {phase['peak_gigabytes']} GB (predicted {phase['predicted_gigabytes']})"
        for name, phase in found["phases"].items()
    ]
    return ", ".join([*parts, f"drift {found['ratio_drift']:.2e} of {found['ratio_clip']:g}"])
