"""Find a pipeline's folder, in diffusers' own layout, and check that it is complete."""

import hashlib
import json
from pathlib import Path
from typing import Any

from flash_grpo.hub import local_folder

TINY = "tiny_wan"  # the tiny world's checkpoint, which ships with the package
SHIPPED = Path(__file__).parents[1] / "tiny_world" / "checkpoint"
INDEX = "model_index.json"
WEIGHTS = ("transformer", "vae", "text_encoder")


def pipeline_folder(path: str, revision: str | None) -> Path:
    """Return the folder that holds the pipeline `path`; ValueError in one line if it is missing or incomplete.

    path: a folder, a hub id with a pinned `revision`, or "tiny_wan".
    """
    folder = SHIPPED if path == TINY else local_folder(path, revision, "model.path")
    if not (folder / INDEX).is_file():
        raise ValueError(f"model.path={path}: no {INDEX} there; expected a folder in diffusers' layout or a hub id")
    if missing := _missing(folder):
        raise ValueError(f"model.path={path}: {missing} is missing there; fetch all of it, as in `hf download {path}`")
    return folder


def _missing(folder: Path) -> str:
    """Return the first of the pipeline's files that is missing; '' if it is complete."""
    for part in WEIGHTS:
        lists = sorted((folder / part).glob("*.index.json"))
        named = {name for file in lists for name in json.loads(file.read_text())["weight_map"].values()}
        there = {file.name for pattern in ("*.safetensors", "*.bin") for file in (folder / part).glob(pattern)}
        if named - there or not there:
            return f"{part}/{min(named - there, default='*.safetensors')}"
    return "" if any((folder / "tokenizer").glob("*")) else "tokenizer"


def index_of(folder: Path) -> dict[str, Any]:
    """Read the pipeline's index: part name -> [library, class], and its options."""
    return json.loads((folder / INDEX).read_text())


def fingerprint(folder: Path, parts: tuple[str, ...]) -> str:
    """Return a hash of the names, sizes and times of the parts' files: it tells versions apart without reading weights.

    Files of a hub snapshot are links whose targets are named by their content's hash, which is used instead of the time.
    """
    files = sorted(file for part in parts for file in (folder / part).rglob("*") if file.is_file())
    return hashlib.sha256(json.dumps([_identity(file, folder) for file in files]).encode()).hexdigest()


def _identity(file: Path, folder: Path) -> list[str | int]:
    content = file.resolve().name if file.is_symlink() else file.stat().st_mtime_ns
    return [str(file.relative_to(folder)), file.stat().st_size, content]
