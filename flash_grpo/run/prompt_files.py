"""Read prompts from a user's files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from flash_grpo.algorithm.batches import Prompts


def from_files(train: str, test: str) -> Prompts:
    """Read the training and the held-out prompts from UTF-8 files; ValueError if a file cannot be read.

    .txt: one prompt per line. .jsonl: one object per line, with a "prompt"; its other fields are metadata. Blank lines are
    skipped. Duplicates, and held-out prompts that are also trained on, are kept, and `Prompts.oddities` describes them.
    """
    trained, held_out = _read("train", train), _read("test", test)
    prompts = Prompts(
        train=tuple(line["prompt"] for line in trained),
        test=tuple(line["prompt"] for line in held_out),
        metadata={line["prompt"]: _metadata(line) for line in held_out if len(line) > 1},
    )
    return replace(prompts, oddities=tuple(_oddities(prompts)))


def _metadata(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "prompt"}


def _oddities(prompts: Prompts) -> list[str]:
    """Describe duplicate prompts, and held-out prompts that are also trained on, in a line each."""
    oddities = []
    for key, texts in (("train", prompts.train), ("test", prompts.test)):
        if repeated := [text for text, count in Counter(texts).items() if count > 1]:
            oddities.append(
                f"prompts.{key}: {len(repeated)} prompts stand there more than once, {repeated[0]!r} for one"
            )
    if shared := sorted(set(prompts.train) & set(prompts.test)):
        oddities.append(
            f"prompts: {len(shared)} of {len(set(prompts.test))} held-out prompts are trained on, {shared[0]!r} for one"
        )
    return oddities


def _read(key: str, path: str) -> list[dict[str, Any]]:
    """Return one object for each line of the file that is not blank; a line of plain text becomes {prompt: text}."""
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
        fields = json.loads(line)
        text = fields["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: expected a JSON object with "prompt" ({type(error).__name__}: {error})') from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: its prompt has no text")
    return {**fields, "prompt": text.strip()}
