"""`python -m flash_grpo.bench model=wan21_1p3b`: one denoising step, one decoding and one update at the real shape, as JSON.

Random weights of the configured architecture, so no file is needed; the reward is a stub. TFLOP/s count the model's own
FLOPs (a backward is two forwards), not those that gradient checkpointing computes again.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig

from flash_grpo import cli
from flash_grpo.rewards.brightness import brightness

TEXT = "a red cat runs through the snow"


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Seconds, peak memory and TFLOP/s of each phase; medians over `bench.repeats` after one that is not counted."""
    from flash_grpo.run import build, device

    where = torch.device(device(cfg))
    torch.set_num_threads(cfg.threads)
    lora = cfg.optim.lora or cli.composed(["optim=lora"]).optim.lora
    policy = build(cfg.model, "model", device=where, weights="random", lora=lora)
    batch, steps = cfg.bench.batch, cfg.schedule.num_steps
    x = torch.randn(batch, *policy.latent_shape, device=where)
    timestep, condition = torch.full((batch,), 900), policy.encode([TEXT] * batch)
    video = policy.decode(x)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-4)

    def update() -> None:
        policy.velocity(x, timestep, condition).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    forward = batch * policy.evaluations_per_velocity * policy.flops_per_forward
    phases = {
        "denoising_step": (torch.no_grad()(lambda: policy.velocity(x, timestep, condition)), forward),
        "decode": (lambda: policy.decode(x), None),
        "reward": (lambda: brightness(video, (TEXT,) * batch), None),
        "update": (update, 3 * forward),
    }
    measured = {name: _phase(run, flops, where, cfg.bench.repeats) for name, (run, flops) in phases.items()}
    return {
        "model": cfg.model.path,
        "weights": "random",
        "shape": {"frames": cfg.model.frames, "height": cfg.model.height, "width": cfg.model.width, "batch": batch},
        "latent": list(policy.latent_shape),
        "parameters": sum(one.numel() for one in policy.transformer.parameters() if not one.requires_grad),
        "trainable": sum(parameter.numel() for parameter in policy.trainable().values()),
        "tflop_per_forward": round(policy.flops_per_forward / 1e12, 4),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "dtype": cfg.model.dtype,
        "torch": torch.__version__,
        "phases": measured,
        "rollout_seconds": round(steps * measured["denoising_step"]["seconds"] + measured["decode"]["seconds"], 4),
        "rollout_steps": steps,
    }


def _phase(run: Callable[[], object], flops: float | None, where: torch.device, repeats: int) -> dict[str, Any]:
    gpu = where.type == "cuda"
    run()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = median(_seconds(run, gpu) for _ in range(repeats))
    return {
        "seconds": round(seconds, 5),
        "peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 3) if gpu else None,
        "tflop_per_second": round(flops / seconds / 1e12, 4) if flops else None,
    }


def _seconds(run: Callable[[], object], gpu: bool) -> float:
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start
