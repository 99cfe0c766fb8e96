"""Read a run from its directory: its model, its checkpoints, its result."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.protocols import Policy
from flash_grpo.records.checked import DamagedFileError, from_json, lacking
from flash_grpo.records.files import MANIFEST, ON_MANIFEST, RECORDS, read_manifest, read_records
from flash_grpo.records.schema import Cost, RunManifest
from flash_grpo.run import checkpoint
from flash_grpo.run.build import build
from flash_grpo.run.manifest import refuse_another_format
from flash_grpo.run.trained_experts import with_stored_experts
from flash_grpo.run.trusted import without_foreign_calls

TRUST = (
    "also call what the run's run.json names outside this package: only for runs whose maker you trust"  # for --help
)

SECTIONS = ("model", "optim", "reward", "prompts", "evaluation")  # of a configuration; what a run is judged by later


def configuration_of(manifest: RunManifest, trust: bool = False, without: Collection[str] = ()) -> DictConfig:
    """Return a run's stored configuration, ready to be built from.

    trust: also call what is not a part of this package; otherwise ValueError names it, see `run.trusted`. without: groups
    that the caller replaces; they are left out.
    """
    if not isinstance(manifest.config, dict):  # OmegaConf would read a text as YAML
        raise ValueError(f"config in run.json: expected an object, got {type(manifest.config).__name__}")
    config = {key: part for key, part in manifest.config.items() if key not in without}
    return OmegaConf.create(config if trust else without_foreign_calls(config))


def policy_of(manifest: RunManifest, state: dict[str, Any], device: str, trust: bool = False) -> Policy:
    """Build a run's model as it was before training, with its adapters. trust: as in `configuration_of`.

    state: of one of its checkpoints, which tells what was trained.
    Attention backend and torch.compile are left out: this machine may lack them.
    """
    cfg = configuration_of(manifest, trust)
    for key, portable in (("attention", None), ("compile", False)):
        if key in cfg.model:
            cfg.model[key] = portable
    return build(with_stored_experts(cfg.model, state), "model", device=device, lora=cfg.optim.get("lora"))


def gain(first: dict[str, float | None], last: dict[str, float | None]) -> str:
    """Return the mean gain over prompts with its interval, in words; a single prompt has no interval."""
    gains = torch.tensor([_number(last[text]) - _number(first[text]) for text in first if text in last])
    if len(gains) < 2:
        return f"{float(gains.mean()):+.3f}, {len(gains)} prompt"
    return f"{gains.mean():+.3f} ± {1.96 * gains.std() / len(gains) ** 0.5:.3f}, 95 %, paired over {len(gains)} prompts"


def summary(directory: Path) -> str:
    """Summarize a finished run in a few lines: the gain with its interval, the cost, where the files are."""
    evaluations = [record for record in read_records(directory) if record["kind"] == "evaluation"]
    if not evaluations:
        return f"records           {directory / RECORDS}: they hold no evaluation"
    first, last = evaluations[0], evaluations[-1]
    cost = from_json(Cost, last["cost"])
    return (
        f"evaluation reward {_number(first['reward_mean']):.3f} -> {_number(last['reward_mean']):.3f} "
        f"({gain(first['prompt_rewards'], last['prompt_rewards'])})\n"
        f"cost              {cost.device_seconds:.1f} device-seconds, {cost.pflop:.4f} PFLOP, "
        f"{last['iteration']} iterations\n{_guards(directory, last.get('flags'))}"
        f"records           {directory / RECORDS}\nsamples           {directory / 'samples'}"
    )


def _guards(directory: Path, flags: list[str] | None) -> str:
    """Return lines about the guards that hold at the end, and about one that has ended the run; '' for neither."""
    manifest = read_manifest(directory)
    held = f"guards            hold at the end: {', '.join(flags)}\n" if flags else ""
    ended = (
        f"ended early       {manifest.reason}\n"
        if manifest and manifest.status == "completed" and manifest.reason
        else ""
    )
    return held + ended


def _number(value: float | None) -> float:
    """Return a number of a record, in which null stands for one that is not finite."""
    return math.nan if value is None else value


def known_run(run_dir: Path) -> RunManifest:
    """Return the manifest of a run; ValueError if the directory has none, if it is damaged, or another version's."""
    manifest = read_manifest(run_dir)
    if manifest is None:
        raise ValueError(f"{run_dir}: no run.json there; expected a run's directory")
    refuse_another_format(run_dir, manifest)
    sections = {name: section for name, section in manifest.config.items() if isinstance(section, dict)}
    if absent := lacking(sections, SECTIONS):
        raise DamagedFileError(run_dir / MANIFEST, f"its config {absent}", ON_MANIFEST)
    return manifest


def best_iteration(manifest: RunManifest) -> int:
    """Return the iteration of the checkpoint that the run kept as its best; ValueError if it kept none."""
    if manifest.best is None:
        raise ValueError(
            f"{manifest.run_name}: it keeps no best checkpoint; checkpoint.best_by=reward, or held_out, makes a run keep one"
        )
    return manifest.best.iteration


def saved_state(run_dir: Path, iteration: int | None) -> dict:
    """Load the checkpoint after an iteration, the newest if `iteration` is None.

    ValueError if there is none, or if it is damaged: a result is never quietly that of another iteration than asked for.
    """
    kept = [int(path.name) for path in checkpoint.after_iterations(run_dir)]
    if not kept:
        raise ValueError(f"{run_dir}: it has no checkpoint")
    if iteration is not None and iteration not in kept:
        raise ValueError(f"{run_dir}: it has no checkpoint of iteration {iteration}, only of {kept}")
    wanted = kept[-1] if iteration is None else iteration
    try:
        return checkpoint.load(run_dir, f"{wanted:06d}")
    except DamagedFileError as error:
        others = [number for number in kept if number != wanted]
        raise ValueError(f"{error}" + (f", or take another with --iteration: {others}" if others else "")) from error
