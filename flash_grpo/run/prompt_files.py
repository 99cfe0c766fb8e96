"""Read prompts from a user's files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from flash_grpo.algorithm.batches import Prompts


def from_files(train: str, test: str) -> Prompts:
    """UTF-8. .txt: one prompt a line. .jsonl: one object a line, with its "prompt"; the rest is metadata. Blank lines are
    left out.

    Duplicates, and held-out prompts that are trained on too, stay: the files are the user's. `oddities` names them.
    """
    trained, held_out = _read("train", train), _read("test", test)
    prompts = Prompts(
        train=tuple(one["prompt"] for one in trained),
        test=tuple(one["prompt"] for one in held_out),
        metadata={one["prompt"]: {key: one[key] for key in one if key != "prompt"} for one in held_out if len(one) > 1},
    )
    return replace(prompts, oddities=tuple(_oddities(prompts)))


def _oddities(prompts: Prompts) -> list[str]:
    told = []
    for key, texts in (("train", prompts.train), ("test", prompts.test)):
        if repeated := [text for text, count in Counter(texts).items() if count > 1]:
            told.append(f"prompts.{key}: {len(repeated)} prompts stand there more than once, {repeated[0]!r} for one")
    if shared := sorted(set(prompts.train) & set(prompts.test)):
        told.append(
            f"prompts: {len(shared)} of {len(set(prompts.test))} held-out prompts are trained on, {shared[0]!r} for one"
        )
    return told


def _read(key: str, path: str) -> list[dict[str, Any]]:
    """Return an object for each line of the file; a line of plain text becomes {prompt: text}."""
    if not Path(path).is_file():
        raise ValueError(f"prompts.{key}={path}: there is no such file")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut in the middle of a text
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts.{key}={path}: not UTF-8 ({error})") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"prompts.{key}={path}: the file holds no prompt")
    if Path(path).suffix != ".jsonl":
        return [{"prompt": line} for _, line in numbered]
    return [_object_of(line, f"prompts.{key}={path}: line {number}") for number, line in numbered]


def _object_of(line: str, where: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
        text = told["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: expected a JSON object with "prompt" ({type(error).__name__}: {error})') from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: its prompt is no text")
    return {**told, "prompt": text.strip()}
