"""`python -m flash_grpo.bench model=wan21_1p3b`: a rollout, its decoding, a reward and its update at the real shape, as JSON.

The trainer's own rollout and update, with random weights of the configured architecture, so no file is needed; the reward is
a stub. TFLOP/s count the model's own FLOPs (a backward is two forwards), not those that gradient checkpointing computes again.
What does not fit the time at hand: schedule.num_steps=2 method.plan.last_step=1, model.frames=17, bench.repeats=1.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.denoise import denoise, initial_noise, sde_noise
from flash_grpo.run import compose
from flash_grpo.training.ranks import Ranks

LINUX = Path("/proc/self")


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Seconds, peak memory and TFLOP/s of each phase; medians over `bench.repeats` after one that is not counted."""
    from flash_grpo.run.build import device, prepare_trainer

    trainer = prepare_trainer(_without_files(cfg), Ranks(device(cfg)))
    policy, schedule, where = trainer.policy, trainer.schedule, trainer.ranks.device
    text_P = trainer.prompts.drawn(1, trainer.layout.num_prompts, trainer.seed)
    batch = trainer.layout.batch(1, text_P, trainer.ranks.rank).split(cfg.bench.batch)[0]
    condition_BMD = policy.encode(batch.text)
    noise_BCFHW = initial_noise(batch, policy.latent_shape, trainer.seed, trainer.method.initial_noise).to(where)
    mask_BT, draw = trainer.method.plan(batch, len(schedule), trainer.seed), sde_noise(batch, policy.latent_shape, 0)

    def rollout() -> tuple:
        return denoise(policy, condition_BMD, noise_BCFHW, schedule, mask_BT, draw)

    latent_BCFHW, transitions = rollout()
    video_BFHWC, one_N = policy.decode(latent_BCFHW), torch.ones(len(transitions))

    def update() -> None:
        list(trainer.backward(transitions, condition_BMD, one_N, one_N, len(transitions)))
        trainer.apply_gradients()

    velocity = policy.evaluations_per_velocity * policy.flops_per_forward
    phases = {
        "rollout": (rollout, len(batch) * len(schedule) * velocity),
        "decode": (lambda: policy.decode(latent_BCFHW), None),
        "reward": (lambda: trainer.reward(video_BFHWC, batch.text), None),
        "update": (update, 3 * len(transitions) * velocity),
    }
    measured = {name: _phase(run, flops, where, cfg.bench.repeats) for name, (run, flops) in phases.items()}
    return {
        "model": cfg.model.path,
        "weights": "random",
        "method": trainer.method.name,
        "shape": {
            "frames": cfg.model.frames,
            "height": cfg.model.height,
            "width": cfg.model.width,
            "batch": len(batch),
        },
        "latent": list(policy.latent_shape),
        "steps": len(schedule),
        "transitions": len(transitions),
        "parameters": sum(one.numel() for one in policy.transformer.parameters() if not one.requires_grad),
        "trainable": sum(parameter.numel() for parameter in policy.trainable().values()),
        "tflop_per_forward": _digits(policy.flops_per_forward / 1e12),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "dtype": cfg.model.dtype,
        "torch": torch.__version__,
        "phases": measured,
    }


def _without_files(cfg: DictConfig) -> DictConfig:
    """The same run on random weights, with LoRA, and with nothing that would have to be fetched."""
    chosen = copy.deepcopy(cfg)
    OmegaConf.set_struct(chosen, False)
    stubs = compose.composed(["optim=lora", "reward=brightness", "prompts=shapes"])
    chosen.reward, chosen.prompts = stubs.reward, stubs.prompts
    if not chosen.optim.lora:
        chosen.optim = stubs.optim
    chosen.model.weights = "random"
    chosen.rollout.batch = chosen.training.batch = cfg.bench.batch
    return chosen


def _phase(run: Callable[[], object], flops: float | None, where: torch.device, repeats: int) -> dict[str, Any]:
    gpu = where.type == "cuda"
    run()
    _forget_peak(gpu)
    seconds = median(_seconds(run, gpu) for _ in range(repeats))
    return {
        "seconds": _digits(seconds),
        "peak_gigabytes": _peak_gigabytes(gpu),
        "tflop_per_second": _digits(flops / seconds / 1e12) if flops else None,
    }


def _forget_peak(gpu: bool) -> None:
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    elif LINUX.is_dir():
        (LINUX / "clear_refs").write_text("5")  # see proc(5): the peak begins anew


def _peak_gigabytes(gpu: bool) -> float | None:
    """Of tensors on the GPU; on a CPU of the whole process, where the system tells."""
    if gpu:
        return _digits(torch.cuda.max_memory_allocated() / 1e9)
    if not LINUX.is_dir():
        return None
    told = dict(line.split(":", 1) for line in (LINUX / "status").read_text().splitlines())
    return _digits(int(told["VmHWM"].split()[0]) * 1024 / 1e9)


def _seconds(run: Callable[[], object], gpu: bool) -> float:
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
