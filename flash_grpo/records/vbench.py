"""Read VBench's results. Standard library only."""

import json
from pathlib import Path
from typing import Any


def read_vbench(path: Path) -> dict[str, float]:
    """Return percent by dimension from VBench's `*_eval_results.json`.

    The file holds {dimension: [score, videos]} or {dimension: score}. VBench writes shares in [0, 1]; if any score is above
    1, the whole file is in percent already. ValueError if the file cannot be read so.
    """
    scores = {dimension: _score(entry, path) for dimension, entry in _entries(path).items()}
    scale = 1 if any(score > 1 for score in scores.values()) else 100
    return {dimension: scale * score for dimension, score in scores.items()}


def merged_vbench(kept: Path, results: Path) -> str:
    """Return the JSON of `kept` with the dimensions of `results` added or replaced, every score a share in [0, 1].

    A file of shares and a file of percent can therefore be merged. `kept` may be absent. The entries of single videos stay
    as they are.
    """
    merged = {}
    for path in (kept, results):
        if path == results or path.exists():
            percent = read_vbench(path)
            for dimension, entry in _entries(path).items():
                videos = entry[1:] if isinstance(entry, list) else []
                merged[dimension] = [percent[dimension] / 100, *videos]
    return json.dumps(merged)


def _entries(path: Path) -> dict:
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _not_vbench(path, error) from error
    if not isinstance(entries, dict):
        raise _not_vbench(path, TypeError(f"expected an object, got {type(entries).__name__}"))
    return entries


def _score(entry: Any, path: Path) -> float:
    try:
        return float(entry[0] if isinstance(entry, list) else entry)
    except (ValueError, TypeError, IndexError) as error:
        raise _not_vbench(path, error) from error


def _not_vbench(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not VBench's results ({type(error).__name__}: {error})")
