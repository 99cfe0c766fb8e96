"""Describe a run before it starts, and refuse a directory that holds another one."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.algorithm.schedule import fingerprint
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.records.files import read_object
from flash_grpo.records.identity import comparable, is_as_before, is_identity
from flash_grpo.records.schema import FORMAT, RunManifest
from flash_grpo.training.ranks import Ranks

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "hydra-core", "submitit", "numpy")


def describe(
    config: dict[str, Any], run_name: str, schedule: FlowSchedule, prompts: Prompts, ranks: Ranks
) -> RunManifest:
    """Return the manifest of a run of the resolved `config`, not yet started."""
    return RunManifest(
        format=FORMAT,
        run_name=str(run_name),
        study=str(config["study"]),
        method=config["method"]["name"],
        model=config["model"].get("path") or config["model"]["_target_"],  # a model of one's own may have no path
        seed=config["seed"],
        config=config,
        config_hash=hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest(),
        schedule={name: value.tolist() for name, value in vars(schedule).items()},
        schedule_hash=fingerprint(schedule),
        prompts_hash=hash_of(prompts),
        adapters_hash=adapters_hash(config),
        git=git_state(),
        packages={name: metadata.version(name) for name in PACKAGES},
        hardware=hardware(ranks),
        world_size=ranks.world_size,
    )


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that may not change when a run continues, by dotted key.

    All settings count except those that `records.identity` lists: where the run's directory is, how far the run goes, how
    often it is saved, how much is computed at once, where its reward servers and prompt files are, and keys that earlier
    versions did not have, at null or at the value that means what those did.
    """
    known = {key: value for key, value in flat(config).items() if value is not None and is_identity(key)}
    return {key: comparable(key, value) for key, value in known.items() if not is_as_before(key, value)}


def refuse_another_run(directory: Path, there: RunManifest, wanted: dict[str, Any], prompts: Prompts) -> None:
    """Raise ValueError if the directory's run is of another version, configuration, texts or adapters to begin with."""
    refuse_another_format(directory, there)
    refuse_another_config(directory, there.config, wanted)
    refuse_other_prompts(directory, there.prompts_hash, prompts)
    refuse_other_adapters(directory, there.adapters_hash, wanted)


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


def refuse_other_adapters(directory: Path, there: str | None, wanted: dict[str, Any]) -> None:
    """Raise ValueError if the files of optim.lora.init_from hold other adapters than when the directory's run began.

    there: the `adapters_hash` in the directory's run.json, None in runs of earlier versions.
    """
    if there and there != adapters_hash(wanted):
        raise ValueError(
            f"{directory} holds a run that began with other adapters than optim.lora.init_from gives now: choose another study "
            "or run_name, or put the files back"
        )


def adapters_hash(config: dict[str, Any]) -> str | None:
    """Return a hash of the files of optim.lora.init_from; None without one. A file that is not there has none."""
    files = flat((config["optim"].get("lora") or {}).get("init_from"))
    found = [Path(str(file)).expanduser() for _, file in sorted(files.items()) if file]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in found if file.is_file()]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest() if digests else None


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
