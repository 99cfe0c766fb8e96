"""Measure a rollout, its decoding, a reward and its update at the size of a real model, with random weights.

The trainer's own rollout and update run on random weights of the configured architecture, so no file is needed; the reward
is a stub. TFLOP/s count all that is computed: forwards, backwards, and what gradient checkpointing computes again. To make
it faster: schedule.num_steps=2 method.plan.last_step=1, model.frames=17, bench.repeats=1.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.denoise import Denoised
from flash_grpo.run import compose
from flash_grpo.run.build import device, prepare_trainer
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.rollouts import joined_rollouts
from flash_grpo.training.trainer import Trainer

LINUX = Path("/proc/self")


@dataclass(frozen=True)
class Phase:
    """A phase of an iteration. run: executes it once. flops: how many it needs, None if they are not counted."""

    run: Callable[[], object]
    flops: float | None = None


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Return the model's sizes and, for each phase, seconds, peak memory and TFLOP/s.

    Seconds are medians over `bench.repeats` after one repeat that is not counted.
    """
    trainer = prepare_trainer(_without_files(cfg), Ranks(device(cfg)))
    policy, where = trainer.policy, trainer.ranks.device
    phases, sizes = _phases(trainer, cfg.bench.batch)
    measured = {name: _measured(phase, where, cfg.bench.repeats) for name, phase in phases.items()}
    wan: Any = policy
    frozen = [parameter for parameter in wan.transformer.parameters() if not parameter.requires_grad]
    return {
        "model": cfg.model.path,
        "weights": "random",
        "method": trainer.method.name,
        "shape": {key: cfg.model[key] for key in ("frames", "height", "width")} | {"batch": sizes["batch"]},
        "latent": list(policy.latent_shape),
        "steps": len(trainer.schedule),
        "transitions": sizes["transitions"],
        "parameters": sum(parameter.numel() for parameter in frozen),
        "trainable": sum(parameter.numel() for parameter in policy.trainable().values()),
        "tflop_per_forward": _digits(policy.flops.forward / 1e12),
        "tflop_per_backward": _digits((policy.flops.backward + policy.flops.recompute) / 1e12),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "dtype": cfg.model.dtype,
        "torch": torch.__version__,
        "phases": measured,
    }


def _phases(trainer: Trainer, count: int) -> tuple[dict[str, Phase], dict[str, int]]:
    """Return the phases of an iteration of at most `count` rollouts, by name, and its counts of rollouts and transitions."""
    policy, maker = trainer.policy, trainer.rollouts
    batch = trainer.batch(1).rows(torch.arange(count))
    routes = [(route, policy.encode(route.batch.text)) for route in maker.routes(batch)]

    def rollout() -> list[Denoised]:
        return [maker.denoised(route, condition_BMD) for route, condition_BMD in routes]

    denoised = rollout()
    latent_BCFHW = torch.cat([made.latent_BCFHW for made in denoised])
    decoded = [maker.decoded(route.batch, text, made) for (route, text), made in zip(routes, denoised, strict=True)]
    rollouts = joined_rollouts(batch, decoded)
    video_BFHWC, condition_BMD = rollouts.video_BFHWC, rollouts.condition_BMD
    steps = trainer.updater.steps(rollouts, torch.ones(batch.num_prompts, batch.group_size))

    def update() -> None:
        list(trainer.updater.backward(steps, condition_BMD, torch.ones(len(steps)), len(steps), "measured "))
        trainer.journal.done.clear()
        trainer.updater.apply_gradients()

    forward = policy.evaluations_per_velocity * policy.flops.forward
    backward = policy.evaluations_per_velocity * (policy.flops.backward + policy.flops.recompute)
    phases = {
        "rollout": Phase(rollout, sum(made.velocities for made in denoised) * forward),
        "decode": Phase(lambda: policy.decode(latent_BCFHW), len(batch) * policy.flops.decode),
        "reward": Phase(lambda: maker.reward(video_BFHWC, batch.text)),
        "update": Phase(update, len(steps.taken.x_SCFHW) * (forward + backward)),
    }
    return phases, {"batch": len(batch), "transitions": len(steps)}


def _without_files(cfg: DictConfig) -> DictConfig:
    """Return the configuration with random weights, with LoRA, and with nothing that would have to be downloaded."""
    chosen = copy.deepcopy(cfg)
    OmegaConf.set_struct(chosen, False)
    stubs = compose.composed(["optim=lora", "reward=brightness", "prompts=shapes"])
    chosen.reward, chosen.prompts = stubs.reward, stubs.prompts
    if not chosen.optim.lora:
        chosen.optim = stubs.optim
    chosen.model.weights = "random"
    chosen.rollout.batch = chosen.training.batch = cfg.bench.batch
    return chosen


def _measured(phase: Phase, where: torch.device, repeats: int) -> dict[str, Any]:
    gpu = where.type == "cuda"
    phase.run()
    _forget_peak(gpu)
    seconds = median(_seconds(phase.run, gpu) for _ in range(repeats))
    return {
        "seconds": _digits(seconds),
        "peak_gigabytes": _peak_gigabytes(gpu),
        "tflop_per_second": _digits(phase.flops / seconds / 1e12) if phase.flops else None,
    }


def _forget_peak(gpu: bool) -> None:
    """Start a new measurement of peak memory."""
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    elif LINUX.is_dir():
        (LINUX / "clear_refs").write_text("5")  # see proc(5): resets VmHWM


def _peak_gigabytes(gpu: bool) -> float | None:
    """Return the peak memory in GB: of tensors on a GPU, of the whole process on a CPU; None if the system has no number."""
    if gpu:
        return _digits(torch.cuda.max_memory_allocated() / 1e9)
    if not LINUX.is_dir():
        return None
    status = dict(line.split(":", 1) for line in (LINUX / "status").read_text().splitlines())
    return _digits(int(status["VmHWM"].split()[0]) * 1024 / 1e9)


def _seconds(run: Callable[[], object], gpu: bool) -> float:
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _digits(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")
