"""Check, from headers alone, that a part's weight files are there and are those of its config.json.

from_pretrained would make up what is missing and leave out what is too much: a model with a layer too few trains without a
word.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

# diffusers' and transformers' names: stem, maybe a shard, maybe a variant (fp16), maybe a shard
FILE = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(\w+?))?(?:-\d+-of-\d+)?\.(safetensors|bin)"
)
Shapes = dict[str, tuple[int, ...]]


def check_weights(folder: Path, part: str, named: list[str], path: str) -> None:
    """Raise ValueError in one line if files of the part are missing or broken, or its config.json does not fit them.

    named: library and class of the part, as the pipeline's index has them. path: `model.path`, for the message.
    """
    shapes: Shapes = {}
    for file in weight_files(folder, part, path):
        shapes |= _shapes(file)
    described = _described(folder, part, named)
    config: Any = described.config
    if getattr(config, "image_dim", None) or getattr(config, "in_channels", 0) != getattr(config, "out_channels", 0):
        raise ValueError(
            f"model.path={path}: {part}/config.json is that of a model that takes images beside the latents; conditioning on "
            "images is not supported"
        )
    if problem := _misfit(described, shapes, whole=part != "text_encoder"):
        raise ValueError(f"model.path={path}: {part}/config.json does not fit the weights beside it: {problem}")


def variant_of(folder: Path, part: str) -> str | None:
    """Return the variant in which the part's weights lie there, as "fp16"; None where they lie there without one.

    ValueError if there are several, and none without.
    """
    variants = {match[1] for file in (folder / part).glob("*") if (match := FILE.fullmatch(file.name))}
    if None in variants or not variants:
        return None
    if len(variants) > 1:
        raise ValueError(
            f"{folder / part} holds the variants {', '.join(sorted(variants))}, and none without a name: keep one of them"
        )
    return variants.pop()


def weight_files(folder: Path, part: str, path: str) -> list[Path]:
    """Return the files that the part is loaded from; ValueError in one line if one is missing, or its index is broken."""
    variant, inside = variant_of(folder, part), folder / part
    for ending in ("safetensors", "bin"):
        there = {file.name for file in inside.glob("*") if _is(file.name, variant, ending)}
        indices = sorted(inside.glob(f"*.{ending}.index{f'.{variant}' if variant else ''}.json"))
        named = {name for index in indices for name in _weight_map(index)}
        if missing := [name for name in sorted(named) if not (inside / name).is_file()]:
            _refuse_missing(f"{part}/{missing[0]}", path)
        if named or there:
            return [inside / name for name in sorted(named or there)]
    return _refuse_missing(f"{part}/*.safetensors", path)


def _is(name: str, variant: str | None, ending: str) -> bool:
    match = FILE.fullmatch(name)
    return bool(match and match[1] == variant and match[2] == ending)


def _refuse_missing(name: str, path: str) -> Any:
    raise ValueError(f"model.path={path}: {name} is missing there; fetch all of it, as in `hf download {path}`")


def _weight_map(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: no index of weight files ({error!r}); fetch it again") from error


def _shapes(file: Path) -> Shapes:
    """Return the shape of each tensor of a weight file, by name."""
    try:
        if file.suffix == ".bin":
            loaded = torch.load(file, map_location="meta", mmap=True, weights_only=True)
            return {name: tuple(tensor.shape) for name, tensor in loaded.items()}
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 -- no dict
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{file}: cannot be read as weights ({' '.join(str(error).split())}); fetch it again"
        ) from error


def _described(folder: Path, part: str, named: list[str]) -> torch.nn.Module:
    """Make the part as its config.json describes it, on the meta device, where it takes no memory."""
    kind: Any = getattr(importlib.import_module(named[0]), named[1])
    try:
        with torch.device("meta"):
            if named[0] == "transformers":
                return kind(kind.config_class.from_pretrained(folder, subfolder=part))
            return kind.from_config(kind.load_config(folder, subfolder=part))
    except (OSError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{folder / part / 'config.json'}: no {named[1]} can be made of it ({why})") from error


def _misfit(described: torch.nn.Module, shapes: Shapes, whole: bool) -> str:
    """Return how described and stored tensors differ, '' if they agree. whole: False lets the file hold further modules."""
    wanted = {name: tuple(tensor.shape) for name, tensor in described.state_dict().items()}
    tied = set(getattr(described, "_tied_weights_keys", None) or ())
    ignored = [re.compile(pattern) for pattern in getattr(described, "_keys_to_ignore_on_load_unexpected", None) or ()]
    modules = {name.partition(".")[0] for name in wanted}
    lacking = sorted(wanted.keys() - shapes.keys() - tied)
    extra = sorted(
        name
        for name in shapes.keys() - wanted.keys() - tied
        if (whole or name.partition(".")[0] in modules) and not any(pattern.search(name) for pattern in ignored)
    )
    other = sorted(name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name])
    if lacking:
        return f"it describes {lacking[0]}, which they lack ({len(lacking)} tensors)"
    if extra:
        return f"they hold {extra[0]}, which it does not describe ({len(extra)} tensors)"
    if other:
        return (
            f"{other[0]} is {list(shapes[other[0]])} in them, and by it {list(wanted[other[0]])} ({len(other)} tensors)"
        )
    return ""
