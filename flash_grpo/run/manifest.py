"""Describe a run before it starts, and refuse a directory that holds another one."""

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

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.algorithm.schedule import fingerprint
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import read_manifest, read_object
from flash_grpo.records.identity import comparable, is_identity
from flash_grpo.records.schema import FORMAT, TIME, ProgramStart, RunManifest
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.training.ranks import Ranks

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "hydra-core", "submitit", "numpy")


def describe(
    config: dict[str, Any], run_name: str, schedule: FlowSchedule, prompts: Prompts, ranks: Ranks
) -> RunManifest:
    """Return the manifest of a run of the resolved `config`, not yet started."""
    return RunManifest(
        format=FORMAT,
        run_name=run_name,
        study=config["study"],
        method=config["method"]["name"],
        model=config["model"].get("path") or config["model"]["_target_"],  # a model of one's own may have no path
        seed=config["seed"],
        config=config,
        config_hash=hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest(),
        schedule={name: value.tolist() for name, value in vars(schedule).items()},
        schedule_hash=fingerprint(schedule),
        prompts_hash=hash_of(prompts),
        git=git_state(),
        packages={name: metadata.version(name) for name in PACKAGES},
        hardware=hardware(ranks),
        world_size=ranks.world_size,
    )


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that may not change when a run continues, by dotted key.

    All settings count except those that `records.identity` lists: where the run's directory is, how far the run goes, how
    often it is saved, how much is computed at once, and where its reward servers and prompt files are.
    """
    return {key: comparable(key, value) for key, value in flat(config).items() if is_identity(key)}


def refuse_another_format(directory: Path, there: RunManifest) -> None:
    """Raise ValueError if another version of the suite made the directory. Its records can still be read."""
    if there.format != FORMAT:
        raise ValueError(
            f"{directory} was made by another version of this suite (format {there.format}; this one has {FORMAT}). Only that "
            "version can continue, evaluate or export it: choose another study or run_name, or delete it"
        )


def refuse_another_config(directory: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError, naming the keys, if the directory's run defines a different run than the wanted configuration.

    there: the configuration in the directory's run.json.
    """
    old, new = identity(there), identity(wanted)
    old_values, new_values = flat(there), flat(wanted)
    if differing := [
        f"{key}: {old_values.get(key, '(absent)')} there, {new_values.get(key, '(absent)')} asked for"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "(absent)") != new.get(key, "(absent)")
    ]:
        raise ValueError(
            f"{directory} holds a run of another configuration ({'; '.join(differing)}): "
            "choose another study or run_name, or delete it"
        )


def refuse_other_prompts(directory: Path, there: str, prompts: Prompts) -> None:
    """Raise ValueError if the directory's run began with other texts.

    there: the `prompts_hash` in the directory's run.json, empty in runs of earlier versions.
    """
    if there and there != hash_of(prompts):
        raise ValueError(
            f"{directory} holds a run with other texts than prompts.train and prompts.test give now: choose another study or "
            "run_name, or put the files back"
        )


def hash_of(prompts: Prompts) -> str:
    return hashlib.sha256(json.dumps([prompts.train, prompts.test]).encode()).hexdigest()


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value for name, item in node.items() for key, value in flat(item, f"{prefix}.{name}".strip(".")).items()
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit of the code and whether the working tree differed from it. A snapshot of the code stores both."""
    noted = Path(__file__).parents[2] / "git.json"
    if noted.is_file():
        return read_object(noted, "submit the sweep again")

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


def start(progress: dict[str, int], set_aside: list[str]) -> ProgramStart:
    """Describe this start of the program. progress: `ProgramStart`'s iteration, pieces and reached. set_aside: as there."""
    job = SlurmJob.here()
    return ProgramStart(
        time=time.strftime(TIME),
        **progress,
        git=git_state(),
        host=platform.node(),
        pid=os.getpid(),
        slurm=job.variables if job else {},
        set_aside=set_aside,
    )


def last_start(directory: Path) -> str:
    """Describe the last start in the directory's run.json, ' (by run.json pid 7 on n1, …)'; '' if unknown.

    A process that holds the directory's lock is most likely this one.
    """
    try:
        there = read_manifest(directory)
    except DamagedFileError:
        return ""
    if there is None or not there.starts:
        return ""
    last = there.starts[-1]
    job = f", Slurm job {last.job.name}" if last.job else ""
    return f" (by run.json pid {last.pid} on {last.host}{job}, since {last.time})"


def endless_restarts(starts: list[ProgramStart], progress: dict[str, int] | None, limit: int) -> str:
    """Return why the job must stop, or '' if it may go on. It must stop after `limit` restarts in a row without progress.

    progress: where this start resumes, `ProgramStart`'s iteration, pieces and reached. Before the checkpoint is loaded it
    is unknown, None; then every start that managed to write its own entry counts as progress. Only restarts by Slurm count:
    a restart by hand is a new job with a new id.
    """
    if (here := SlurmJob.here()) is None:
        return ""
    earlier = [(start, job) for start in starts if (job := start.job) and job.job_id == here.job_id]
    got_further = [job.restart_count for start, job in earlier if progress is None or _is_further(progress, start)]
    idle = here.restart_count - 1 - max(got_further, default=-1)
    if idle < limit:
        return ""
    goal = (
        f"completing a micro-batch after iteration {progress['iteration']}"
        if progress
        else "loading its checkpoint and model"
    )
    return f"started {idle} times without {goal}: giving up"


def _is_further(progress: dict[str, int], start: ProgramStart) -> bool:
    return progress["pieces"] > start.pieces or progress["reached"] > start.reached
