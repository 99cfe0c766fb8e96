"""Find a pipeline's folder, in diffusers' own layout, and check that it is complete and is what the configuration wants."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flash_grpo.algorithm import ranges
from flash_grpo.hub import local_folder
from flash_grpo.policies.weights import check_weights

SHIPPED = {  # the small worlds' checkpoints, which ship with the package
    "tiny_wan": Path(__file__).parents[1] / "tiny_world" / "checkpoint",
    "scenes_wan": Path(__file__).parents[1] / "scenes_world" / "checkpoint",
}
INDEX, PIPELINE = "model_index.json", "WanPipeline"
LOW = "transformer_2"  # computes low noise, where there are two
# What a pipeline's index may name for the parts that are loaded. The decoder's class is the only one that is looked up.
CLASSES = {
    "transformer": (("diffusers", "WanTransformer3DModel"),),
    LOW: (("diffusers", "WanTransformer3DModel"),),
    "vae": (("diffusers", "AutoencoderKLWan"), ("flash_grpo.tiny_world.codec", "LinearVideoCodec")),
    "text_encoder": (("transformers", "UMT5EncoderModel"),),
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a configuration wants of a pipeline: `WanPolicy`'s arguments of these names."""

    boundary: float | None = None
    split: bool = False
    expand_timesteps: bool = False


def pipeline_folder(path: str, revision: str | None, wanted: Wanted | None = None) -> Path:
    """Return the folder that holds the pipeline `path`; ValueError in one line if it is missing, incomplete or another.

    path: a folder, a hub id with a pinned `revision`, or a name in SHIPPED. wanted: None checks that the folder is complete.
    """
    folder = found(path, revision)
    if not (folder / INDEX).is_file():
        raise ValueError(f"model.path={path}: no {INDEX} there; expected a folder in diffusers' layout or a hub id")
    index = index_of(folder)
    _refuse_other_classes(index, path)
    if wanted:
        _refuse_other_experts(index, wanted, path)
    for part in parts_of(index):
        check_weights(folder, part, index[part], path)
    if not any((folder / "tokenizer").glob("*")):
        raise ValueError(f"model.path={path}: tokenizer is missing there; fetch all of it, as in `hf download {path}`")
    return folder


def found(path: str, revision: str | None) -> Path:
    """Return the folder of the pipeline `path`, unchecked; ValueError if there is none."""
    ranges.text("model.path", path)
    ranges.text("model.revision", revision, null=True)
    return SHIPPED.get(path) or local_folder(path, revision, "model.path")


def parts_of(index: dict[str, Any]) -> list[str]:
    """Return the parts with weights that a pipeline has: one transformer or two, decoder, text encoder."""
    return [part for part in CLASSES if part != LOW or has_two_experts(index)]


def has_two_experts(index: dict[str, Any]) -> bool:
    named = index.get(LOW)
    return bool(named and named[0])


def index_of(folder: Path) -> dict[str, Any]:
    """Read the pipeline's index: part name -> [library, class], and its options. ValueError names a file that is broken."""
    return read_json(folder / INDEX)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError, naming the file, if it is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({' '.join(str(error).split())}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}; fetch it again")
    return content


def differences(folder: Path, boundary: float | None, shifts: dict[str, float]) -> list[str]:
    """Return, a line each, what the pipeline would be run with and this run is not. shifts: the run's, by key."""
    own_boundary, scheduler = index_of(folder).get("boundary_ratio"), folder / "scheduler" / "scheduler_config.json"
    config = read_json(scheduler) if scheduler.is_file() else {}
    own_shift = config.get("flow_shift", config.get("shift"))
    found = []
    if boundary is not None and own_boundary is not None and boundary != own_boundary:
        found.append(f"model.boundary={boundary}, while {folder / INDEX} has boundary_ratio={own_boundary}")
    others = [f"{key}={shift}" for key, shift in shifts.items() if own_shift is not None and shift != own_shift]
    if others:
        found.append(f"{', '.join(others)}, while {scheduler} has a shift of {own_shift}")
    return found


def _refuse_other_classes(index: dict[str, Any], path: str) -> None:
    """Raise ValueError if the index names a class that is not in CLASSES: a folder of a stranger must not choose what runs."""
    pipeline = str(index.get("_class_name", PIPELINE))[:80]
    if pipeline != PIPELINE:
        raise ValueError(
            f"model.path={path}: its {INDEX} is that of a {pipeline}; supported is text-to-video by {PIPELINE}, without "
            "conditioning on images or videos"
        )
    for part in parts_of(index):
        named = index.get(part)
        if not isinstance(named, list) or tuple(named) not in CLASSES[part]:
            names = " or ".join(".".join(pair) for pair in CLASSES[part])
            raise ValueError(f"model.path={path}: its {INDEX} names {str(named)[:80]} as {part}; supported is {names}")


def _refuse_other_experts(index: dict[str, Any], wanted: Wanted, path: str) -> None:
    """Raise ValueError if the pipeline has more or fewer transformers than wanted, or takes other timesteps."""
    two, tokens = has_two_experts(index), bool(index.get("expand_timesteps"))
    if two and wanted.boundary is None:
        raise ValueError(
            f"model.path={path}: it has two transformers, for high and for low noise; choose model=wan22_a14b, or set "
            f"model.boundary={index.get('boundary_ratio')}"
        )
    if two and wanted.split:
        raise ValueError(f"model.split=true: {path} has two transformers already; leave it out")
    if wanted.boundary is not None and not two and not wanted.split:
        raise ValueError(
            f"model.boundary={wanted.boundary}: {path} has one transformer; set it to null, or set model.split=true to begin "
            "both experts as copies of it"
        )
    if tokens != wanted.expand_timesteps:
        raise ValueError(
            f"model.expand_timesteps={str(wanted.expand_timesteps).lower()}: {path} is a pipeline that has it "
            f"{str(tokens).lower()}; Wan2.2-TI2V-5B (model=wan22_5b) has it true, all others false"
        )


def fingerprint(folder: Path, parts: tuple[str, ...]) -> str:
    """Return a hash of the names, sizes and times of the parts' files: it tells versions apart without reading weights.

    Files of a hub snapshot are links whose targets are named by their content's hash, which is used instead of the time.
    """
    files = sorted(file for part in parts for file in (folder / part).rglob("*") if file.is_file())
    return hashlib.sha256(json.dumps([_identity(file, folder) for file in files]).encode()).hexdigest()


def _identity(file: Path, folder: Path) -> list[str | int]:
    content = file.resolve().name if file.is_symlink() else file.stat().st_mtime_ns
    return [str(file.relative_to(folder)), file.stat().st_size, content]
