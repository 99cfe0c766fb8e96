"""Check runs on a device: one that is killed and resumed, a sharded base, an export that the pipeline loads."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from flash_grpo.measure.stopwatch import digits
from flash_grpo.records.files import read_records
from flash_grpo.run import build, checkpoint

THIS_CODE = str(Path(__file__).resolve().parents[2])
ITERATIONS, KILLED_AFTER, MOST_S = 8, 2, 300.0
BUDGET = (f"budget.iterations={ITERATIONS}", "budget.pflop=null")
RUN = ("rollout.layout.num_prompts=2", "evaluation.every=1", "checkpoint.every=1", *BUDGET)


def resume(gpu: bool) -> dict[str, Any]:
    """Kill a run of the tiny world after two iterations, continue it, and compare it with one that was not killed."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "acceptance", "whole"), Path(folder, "acceptance", "killed")
        with _started(whole, gpu) as process:
            process.wait(MOST_S)
        with _started(killed, gpu) as process:
            until = time.monotonic() + MOST_S
            while _iterations(killed) < KILLED_AFTER and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
        was_killed, reached = process.returncode == -signal.SIGKILL, _iterations(killed)
        with _started(killed, gpu) as process:
            process.wait(MOST_S)
        return {"killed": was_killed, "after": reached, "bit_identical": _same(whole, killed)}


@contextmanager
def _started(directory: Path, gpu: bool) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the run; at the block's end, however it comes, the process is killed if it still goes on."""
    places = (f"runs_root={directory.parents[1]}", f"study={directory.parent.name}", f"run_name={directory.name}")
    command = [sys.executable, "-m", "flash_grpo.cli", *RUN, *places, f"device={'cuda' if gpu else 'cpu'}"]
    path = os.pathsep.join(filter(None, [THIS_CODE, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _iterations(directory: Path) -> int:
    if not (directory / "run.json").exists():
        return 0
    return sum(record["kind"] == "iteration" for record in read_records(directory))


def _same(first: Path, second: Path) -> bool:
    """Return True if both runs came to the same iteration with weights that are equal bit by bit."""
    ours, theirs = checkpoint.newest(first), checkpoint.newest(second)
    if ours is None or theirs is None or ours["progress"]["iteration"] != ITERATIONS:
        return False
    parts = [(ours[part], theirs[part]) for part in ("parameters", "ema")]
    return ours["progress"]["place"] == theirs["progress"]["place"] and all(
        mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
        for mine, other in parts
    )


def shard(cfg: DictConfig) -> dict[str, Any]:
    """Compare velocities and gradients before and after the base is sharded over a process group of this rank alone."""
    policy: Any = _policy(cfg)
    before = _velocity_and_gradient(policy)
    backend = "nccl" if policy.device.type == "cuda" else "gloo"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dist.init_process_group(backend, init_method=address, rank=0, world_size=1)
    try:
        get_method("flash_grpo.policies.shard.shard_over_all")(policy.transformer, policy.device)
        after = _velocity_and_gradient(policy)
    finally:
        dist.destroy_process_group()
    differences = [digits(float((ours - theirs).abs().max())) for ours, theirs in zip(before, after, strict=True)]
    return {"backend": backend, "velocity_difference": differences[0], "gradient_difference": differences[1]}


def export(cfg: DictConfig) -> dict[str, Any]:
    """Export adapters and have the pipeline load them."""
    policy, architecture = _policy(cfg), OmegaConf.to_container(cfg.model.architecture)
    with tempfile.TemporaryDirectory() as folder:
        check = get_method("flash_grpo.policies.export_check.export_difference")
        difference, effect = check(policy, architecture, Path(folder))
    return {"difference": digits(difference), "effect_of_the_adapters": digits(effect)}


def _policy(cfg: DictConfig) -> Any:
    return build.build(cfg.model, "model", device=build.device(cfg), lora=cfg.optim.lora)


def _velocity_and_gradient(policy: Any) -> list[torch.Tensor]:
    """Return the velocity of one latent, and its gradient by the first adapter that has one."""
    shape = torch.Size(policy.latent_shape)
    x = torch.linspace(-1, 1, shape.numel(), device=policy.device).reshape(1, *shape)
    for parameter in policy.trainable().values():
        parameter.grad = None
    velocity = policy.velocity(x, torch.tensor([700.0]), policy.encode(["a cat"]))
    velocity.square().mean().backward()
    gradients = [parameter.grad for parameter in policy.trainable().values() if parameter.grad is not None]
    return [velocity.detach(), torch.cat([gradient.flatten() for gradient in gradients])]
