"""What a run says of itself before it starts, and whether a directory holds the same run."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from flash_grpo.distributed import Ranks
from flash_grpo.records import RunManifest
from flash_grpo.schedule import fingerprint
from flash_grpo.types import FlowSchedule

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "hydra-core", "submitit", "numpy")
NOT_IDENTITY = ("budget", "study", "runs_root", "run_name", "checkpoint", "measure", "detach", "server", "bench")
NOT_IDENTITY += ("rollout.batch", "training.batch", "evaluation.sampler.batch")
NOT_IDENTITY += ("reward.batch", "reward.urls", "reward.timeout", "reward.give_up_after")
SLURM_IDS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")


def describe(config: dict[str, Any], run_name: str, schedule: FlowSchedule, ranks: Ranks) -> RunManifest:
    """The manifest of a run of the resolved `config`, not yet started."""
    return RunManifest(
        run_name=run_name,
        study=config["study"],
        method=config["method"]["name"],
        model=config["model"]["path"],
        seed=config["seed"],
        config=config,
        config_hash=hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest(),
        schedule={name: value.tolist() for name, value in vars(schedule).items()},
        schedule_hash=fingerprint(schedule),
        git=git_state(),
        packages={name: metadata.version(name) for name in PACKAGES},
        hardware=hardware(ranks),
        world_size=ranks.world_size,
    )


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What may not change when a run continues, by dotted key: all but where it lies, how far it goes, how often it is
    saved, how much is computed at once, and where its reward servers are.
    """
    left_out = tuple(f"{key}." for key in NOT_IDENTITY)
    return {key: value for key, value in flat(config).items() if not f"{key}.".startswith(left_out)}


def refuse_another_config(directory: Path, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError naming the keys in which the directory's run differs from the wanted one."""
    old, new = identity(known), identity(wanted)
    differing = [
        f"{key}: {old.get(key, '(absent)')} there, {new.get(key, '(absent)')} asked for"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "(absent)") != new.get(key, "(absent)")
    ]
    if differing:
        raise ValueError(
            f"{directory} holds a run of another configuration ({'; '.join(differing)}): "
            "choose another study or run_name, or delete it"
        )


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value for name, item in node.items() for key, value in flat(item, f"{prefix}.{name}".strip(".")).items()
    }


def git_state() -> dict[str, Any] | None:
    """The commit that the code came from and whether the tree differed from it; a snapshot of the code carries both."""
    noted = Path(__file__).parents[1] / "git.json"
    if noted.is_file():
        return json.loads(noted.read_text())

    def git(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True)

    if not shutil.which("git") or git("rev-parse", "HEAD").returncode:
        return None
    return {
        "commit": git("rev-parse", "HEAD").stdout.strip(),
        "dirty": bool(git("status", "--porcelain").stdout.strip()),
    }


def hardware(ranks: Ranks) -> dict[str, Any]:
    gpu = ranks.device.type == "cuda"
    name = torch.cuda.get_device_name(ranks.device) if gpu else platform.processor() or platform.machine()
    return {
        "device_type": ranks.device.type,
        "device": name,
        "devices": ranks.world_size,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def start(iteration: int, pieces: int) -> dict[str, Any]:
    """One entry of `RunManifest.starts`."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "iteration": iteration,
        "pieces": pieces,
        "git": git_state(),
        "host": platform.node(),
        "pid": os.getpid(),
        "slurm": {key: os.environ[key] for key in SLURM_IDS if key in os.environ},
    }


def refuse_endless_restarts(starts: list[dict[str, Any]], iteration: int, pieces: int, limit: int) -> None:
    """RuntimeError where Slurm has started this job `limit` times since it last completed a piece of its work.

    pieces: micro-batches done, see `Journal`. A requeued job keeps its id, so a person's own restarts do not count.
    """
    job = os.environ.get("SLURM_JOB_ID")
    of_job = [one["pieces"] for one in starts if job and one["slurm"].get("SLURM_JOB_ID") == job]
    if len(of_job) >= limit and set(of_job[-limit:]) == {pieces}:
        raise RuntimeError(
            f"started {limit} times without completing a micro-batch after iteration {iteration}: giving up"
        )
