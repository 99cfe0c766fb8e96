"""Write a model card for exported weights: base, method, reward, cost, evaluation with intervals, and what it was trained on.

A card is public. Of this machine's paths it gives the last name only, and no hosts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import DictConfig, OmegaConf

from flash_grpo.measure.paired import RESULT
from flash_grpo.records.checked import from_json
from flash_grpo.records.files import PROGRESS, read_object, read_records
from flash_grpo.records.identity import is_of_servers
from flash_grpo.records.schema import Cost, RunManifest
from flash_grpo.run.stored import gain

NAME = "README.md"  # where the Hub looks for a card
LONGEST = 200  # characters of a cell
WAY_OUT = "move it away: the card is then made of the run's own evaluations"
SECTIONS = (
    "method", "reward", "prompts", "schedule", "rollout.layout", "rollout.last_candidate", "rollout.train_fraction",
    "rollout.guidance", "evaluation.guidance", "training", "optim.lora", "optim.optimizer", "optim.ema",
    "optim.max_gradient_norm", "model.guidance", "model.guidance_2", "model.boundary", "model.frames", "model.height",
    "model.width",
)  # fmt: skip
"""What of the configuration a card shows, by dotted key."""
TRANSFORMERS = ("transformer", "transformer_2")
ADAPTERS = {  # by file
    "pytorch_lora_weights.safetensors": 'pipe.load_lora_weights("THIS_FOLDER", weight_name="pytorch_lora_weights.safetensors")',
    "pytorch_lora_weights_2.safetensors": (
        'pipe.load_lora_weights("THIS_FOLDER", weight_name="pytorch_lora_weights_2.safetensors", load_into_transformer_2=True)'
    ),
}


def write_card(run_dir: Path, manifest: RunManifest, folder: Path, iteration: int) -> Path:
    """Write the card of the weights after `iteration`, which lie in `folder`; return its path.

    It takes the newest evaluation up to that iteration, and RUN/evaluation/evaluation.json if that compares it. ValueError
    if there is no evaluation yet.
    """
    cfg = OmegaConf.create(manifest.config)
    records = [record for record in read_records(run_dir) if record["kind"] in PROGRESS]
    records = [record for record in records if record["iteration"] <= iteration]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    if not evaluations:
        raise ValueError(f"{run_dir}: it holds no evaluation up to iteration {iteration}, which a card would show")
    parts = (
        f"# {_cell(manifest.run_name)}",
        f"{_base(manifest, cfg)}, fine-tuned by GRPO with the method `{_cell(manifest.method)}` of the Flash-GRPO suite "
        "([the paper](https://arxiv.org/abs/2605.15980)), to earn more of the reward below.",
        _usage(folder, manifest, cfg),
        _evaluation(evaluations, iteration, cfg, run_dir),
        _training(manifest, cfg, iteration),
        _cost(records[-1], manifest),
    )
    card = ModelCard(f"---\n{_metadata(manifest, cfg).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    card.save(folder / NAME)
    return folder / NAME


def _metadata(manifest: RunManifest, cfg: DictConfig) -> ModelCardData:
    """Return what the Hub reads. The licence is left to the user: it is not this program's to give."""
    on_hub = OmegaConf.select(cfg, "model.revision")  # a folder has none
    return ModelCardData(
        base_model=str(cfg.model.path) if on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-video",
        tags=["grpo", "flash-grpo", *(["lora"] if cfg.optim.get("lora") else [])],
    )


def _base(manifest: RunManifest, cfg: DictConfig) -> str:
    revision = OmegaConf.select(cfg, "model.revision")
    return f"`{_shown(manifest.model)}`" + (f" at revision `{_cell(revision)}`" if revision else "")


def _usage(folder: Path, manifest: RunManifest, cfg: DictConfig) -> str:
    """Return how to load the weights. The small worlds, and a model of a user's own, are none of diffusers' pipelines."""
    licence = "The licence is the base model's; add it as `license:` above."
    if not cfg.model.get("path") or cfg.model.path in ("tiny_wan", "scenes_wan"):
        return f"## Use\n\nThe suite that trained it loads it: `{_shown(manifest.model)}`. {licence}"
    revision = OmegaConf.select(cfg, "model.revision")
    base = f'"{_shown(manifest.model)}", revision="{_cell(revision)}"' if revision else '"FOLDER_OF_THE_BASE_MODEL"'
    whole = [name for name in TRANSFORMERS if (folder / name).is_dir()]
    if whole:
        load = 'WanTransformer3DModel.from_pretrained("THIS_FOLDER", subfolder="{0}")'
        lines = [f"{name} = {load.format(name)}" for name in whole]
        given = "".join(f", {name}={name}" for name in whole)
        head, tail = ["from diffusers import WanPipeline, WanTransformer3DModel", "", *lines], []
    else:
        calls = [call for name, call in ADAPTERS.items() if (folder / name).is_file()]
        head, given, tail = ["from diffusers import WanPipeline", ""], "", calls or [next(iter(ADAPTERS.values()))]
    code = "\n".join([*head, f"pipe = WanPipeline.from_pretrained({base}{given})", *tail])
    elsewhere = "" if whole else "`comfyui/` has the same adapters for ComfyUI and musubi-tuner. "
    return f"## Use\n\n```python\n{code}\n```\n\n{elsewhere}{licence}"


def _evaluation(evaluations: list[dict[str, Any]], iteration: int, cfg: DictConfig, run_dir: Path) -> str:
    first, last = evaluations[0], evaluations[-1]
    steps = OmegaConf.select(cfg, "evaluation.sampler.schedule.num_steps")
    files = [OmegaConf.select(cfg, f"prompts.{name}") for name in ("train", "test")]
    held_out = f"held out, of `{_shown(files[1])}`" if files[1] and files[0] != files[1] else "those of training"
    rows = [
        ["reward", first["reward_mean"], last["reward_mean"], gain(first["prompt_rewards"], last["prompt_rewards"])]
    ]
    rows += [[name, first["reward_parts"].get(name), value, "–"] for name, value in last["reward_parts"].items()]
    if last.get("held_out") is not None:
        gained = gain(first["held_out_prompts"], last["held_out_prompts"])
        rows += [["held-out reward, not trained on", first["held_out"], last["held_out"], gained]]
    at = "" if last["iteration"] == iteration else f" (the weights are those after iteration {iteration})"
    return (
        f"## Evaluation\n\nBase model and this model after iteration {last['iteration']}{at}, on the same prompts "
        f"({held_out}) and the same noise, {steps} deterministic steps, {last['n']} videos each:\n\n"
        f"{_table(['', 'base', 'this model', 'gain'], rows)}\n\n"
        "Intervals are over prompts, ±1.96 standard errors. They are of one training run: another seed may end elsewhere. "
        "The reward was trained on, so it says nothing of what it cannot see."
        + _by_other_rewards(run_dir / "evaluation" / RESULT, f"{iteration:06d}")
    )


def _by_other_rewards(file: Path, name: str) -> str:
    """Return the table of `python -m flash_grpo.evaluate`, if it has compared these weights with the base; else ''."""
    result = read_object(file, WAY_OUT) if file.exists() else {}
    paired = result.get("paired", {}).get(name)
    if not paired:
        return ""
    gains = {"reward": paired, **paired["parts"]}
    rows = [
        [part, f"{one['mean']:+.3f}" + ("" if one["sem"] is None else f" ± {1.96 * one['sem']:.3f}"), paired["n"]]
        for part, one in gains.items()
    ]
    return "\n\nBy `python -m flash_grpo.evaluate`, paired over prompts:\n\n" + _table(
        ["", "gain, 95 %", "prompts"], rows
    )


def _training(manifest: RunManifest, cfg: DictConfig, iteration: int) -> str:
    rows: list[list[Any]] = [["iterations", iteration], ["seed", manifest.seed]]
    for section in SECTIONS:
        rows += [[key, value] for key, value in _leaves(OmegaConf.select(cfg, section), section)]
    rows += [["sha256 of all prompts", manifest.prompts_hash], ["config_hash", manifest.config_hash]]
    return f"## Training\n\n{_table(['setting', 'value'], rows)}"


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the settings below a node with their dotted keys; not where something ran."""
    if isinstance(node, DictConfig):
        for name in node:
            yield from _leaves(node[name], f"{key}.{name!s}".lstrip("."))
    elif (
        node is not None
        and not is_of_servers(key)
        and key.rpartition(".")[2] not in ("device", "_partial_", "_convert_")
    ):
        yield key.removesuffix("._target_"), node


def _cost(record: dict[str, Any], manifest: RunManifest) -> str:
    cost, hardware = from_json(Cost, record["cost"]), manifest.hardware
    git = manifest.git or {}
    rows: list[list[Any]] = [
        ["device-hours (rollout + reward + update)", f"{cost.device_seconds / 3600:.4g}"],
        ["device-hours of evaluation", f"{record['evaluation_seconds'] / 3600:.4g}"],
        ["PFLOP of the transformer", f"{cost.pflop:.4g}"],
        ["videos scored", cost.scored_videos],
        ["device", f"{hardware.get('device')} × {manifest.world_size}"],
        ["suite", f"commit {git.get('commit')}" + (" with changes" if git.get("dirty") else "")],
        *([name, manifest.packages[name]] for name in ("torch", "diffusers", "peft") if name in manifest.packages),
    ]
    return f"## Cost\n\n{_table(['', ''], rows)}"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_shown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    """Return a cell: a number with three digits behind the point, the last name of a path on this machine."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = _cell(value)
    return text.rpartition("/")[2] if text.startswith(("/", "~", ".")) else text


def _cell(value: Any) -> str:
    """Return a text that cannot leave its cell or its code span."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text.replace("|", "/").replace("`", "'").replace("<", "‹")[:LONGEST]
