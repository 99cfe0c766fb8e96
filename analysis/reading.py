"""Read one run directory: its manifest as a row, its records as columns, and notes on what could not be read.

Missing or unreadable data never raises and is never dropped silently: the notes have a sentence about it.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import plain
from analysis.arms import is_tuned, learning_rate
from analysis.style import NOISES
from flash_grpo.records.checked import DamagedFileError, lacking, misfit
from flash_grpo.records.files import MANIFEST, RECORDS, RESTORE, read_object, read_records
from flash_grpo.records.schema import Cost, EvalRecord, IterationRecord, RunManifest

RECORD_TYPES = {"iteration": IterationRecord, "evaluation": EvalRecord}
FLATTENED = ("cost", "seconds", "reward_parts", "held_out_parts", "steps")
KEPT_WHOLE = ("kind", "prompt_rewards", "held_out_prompts", "flags")


@dataclass
class LoadedRun:
    """What was read from one run directory.

    name: of the run. row: from the manifest, empty if it could not be read. columns: the records by kind and column. notes:
    problems.
    """

    name: str
    row: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(run_dir: Path, name: str) -> LoadedRun:
    run = LoadedRun(name)
    if (manifest := _manifest(run_dir, run.notes)) is not None:
        with _without_garbage_collection():
            run.columns = _record_columns(run_dir, name, run.notes)
        if not run.columns:
            run.notes.append(f"no records yet in {RECORDS} (status {_status(manifest)}).")
        run.row = {"path": run_dir} | _run_row(name, manifest)
    return run


def _manifest(run_dir: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        manifest = read_object(run_dir / MANIFEST, RESTORE)
    except DamagedFileError as damaged:
        notes.append(f"left out, its {MANIFEST} {damaged.problem}.")
        return None
    if problem := lacking(manifest, ("method", "seed")) or misfit(RunManifest, manifest):
        notes.append(f"left out, its {MANIFEST} does not say what it is ({problem}).")
        return None
    expected = {
        item.name for item in dataclasses.fields(RunManifest) if item.default is not None
    }  # None: may be absent
    if absent := sorted(expected - manifest.keys()):
        notes.append(f"{MANIFEST} lacks {', '.join(absent)} (written by another version?).")
    return manifest


def _run_row(name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    hardware, config = manifest.get("hardware") or {}, manifest.get("config") or {}
    return {
        "run": name,
        "method": plain.name(manifest["method"]),
        "noise": (noise := _noise(config)),
        "lr": learning_rate(config),
        "tuned": is_tuned(config, manifest["method"], noise),
        "model": plain.name(manifest.get("model") or "unknown"),
        "seed": manifest["seed"],
        "short": _is_short(config) or _is_stopped(manifest),
        "stopped": _is_stopped(manifest),
        "status": plain.name(_status(manifest)),
        "reason": plain.words(manifest.get("reason") or ""),
        "device": plain.name(str(hardware.get("device", "unknown"))),
        "on_cpu": hardware.get("device_type") == "cpu",
        "world_size": manifest.get("world_size") or 1,
        "config": config,
        "git": manifest.get("git") or {},
        "day": _day(manifest.get("starts") or []),
        "prompts": plain.words(manifest.get("prompts_hash") or ""),
        "processor": _processor(hardware),
        "versions": plain.words(
            ", ".join(f"{name} {version}" for name, version in (manifest.get("packages") or {}).items())
        ),
    }


def _day(starts: list[dict[str, Any]]) -> str:
    """Return the date of the run's first start, 2026-01-31; '' if it is not known."""
    return plain.words(starts[0].get("time") or "")[:10] if starts else ""


def _processor(hardware: dict[str, Any]) -> str:
    """Return `x86_64, 2 cores, 2 threads`, of what is known."""
    counts = [f"{hardware[name]} {name}" for name in ("cores", "threads") if isinstance(hardware.get(name), int)]
    return plain.words(", ".join([str(hardware.get("device", "unknown")), *counts]))


def _is_short(config: Any) -> bool:
    """Return True if the run was given a share of its study's budget only."""
    budget = config.get("budget") if isinstance(config, dict) else None
    share = budget.get("share", 1.0) if isinstance(budget, dict) else 1.0
    return isinstance(share, int | float) and share < 1


def _is_stopped(manifest: dict[str, Any]) -> bool:
    """Return True if a guard has ended the run before its budget was spent."""
    return _status(manifest) == "completed" and bool(manifest.get("reason"))


def _status(manifest: dict[str, Any]) -> str:
    return manifest.get("status") or "unknown"


def _noise(config: Any) -> str:
    """Return the SDE noise schedule, `linear`, `flow` or `cps`, wherever it is in the configuration; '' if there is none."""
    if not isinstance(config, dict):
        return ""
    if config.get("noise") in NOISES:
        return config["noise"]
    return next((noise for value in config.values() if (noise := _noise(value))), "")


def _record_columns(run_dir: Path, name: str, notes: list[str]) -> dict[str, dict[str, np.ndarray]]:
    records = {}
    for record in _records(run_dir, notes):
        records.setdefault(record.get("kind", "none"), []).append(record)
    unknown = records.keys() - RECORD_TYPES.keys()
    notes.extend(f"{len(records[kind])} records of the unknown kind {kind!r} were left out." for kind in unknown)
    return {kind: _columns_of(kind, name, records[kind], notes) for kind in records.keys() & RECORD_TYPES.keys()}


def _records(run_dir: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the readable records; add a note if the file becomes unreadable, has blank lines or ends in half a line."""
    try:
        yield from read_records(run_dir)
    except DamagedFileError as damaged:
        where = RECORDS if damaged.line is None else f"line {damaged.line} of {RECORDS}"
        notes.append(f"{where} is unreadable; it and what follows were left out ({damaged.problem}).")
    path = run_dir / RECORDS
    data = path.read_bytes() if path.is_file() else b""
    if blank := sum(not line.strip(b" ") for line in data.split(b"\n")[:-1]):
        notes.append(f"{blank} blank lines of {RECORDS}: records that were given up.")
    if data and not data.endswith(b"\n"):
        notes.append(f"the last line of {RECORDS} is cut short (crash, or still writing) and was left out.")


def _columns_of(kind: str, run: str, records: list[dict], notes: list[str]) -> dict[str, np.ndarray]:
    """Return one run's records of a kind as columns; a missing or null number becomes NaN."""
    expected = [item.name for item in dataclasses.fields(RECORD_TYPES[kind])]
    wide, absent = _by_name(records, expected)
    columns = {"run": _objects([run] * len(records))}
    for name, values in wide.items():
        if name in FLATTENED and name not in absent:
            nested, lacking = _flat(name, values)
            columns |= nested
            absent += lacking
        elif name not in FLATTENED:
            columns[name] = _column(name, values)
    if absent := [name for name in absent if name not in _optional(kind)]:
        notes.append(f"{kind} records lack {', '.join(absent)} (older version?): shown as missing.")
    return columns


def _optional(kind: str) -> set[str]:
    """Return the fields that a later version has added: they have a value that stands for their absence."""
    fields = dataclasses.fields(RECORD_TYPES[kind])
    return {item.name for item in fields if not item.default is item.default_factory is dataclasses.MISSING}


def _flat(name: str, values: Sequence[dict | list | None]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Flatten `cost` to `cost.device_seconds`, …, `steps` to `steps.0`, …; return also the names that some records lack."""
    if isinstance(values[0], list) and len({len(value) if value else 0 for value in values}) == 1:
        return {f"{name}.{index}": column for index, column in enumerate(np.array(values, dtype=float).T)}, []
    values = [dict(enumerate(value)) if isinstance(value, list) else value for value in values]
    expected = {item.name for item in dataclasses.fields(Cost)} if name == "cost" else set()
    columns, absent = _by_name(values, sorted(expected.union(*filter(None, values))))
    return {f"{name}.{key}": _numbers(some) for key, some in columns.items()}, [f"{name}.{key}" for key in absent]


def _by_name(records: Sequence[dict | None], names: list[str]) -> tuple[dict[str, Sequence], list[str]]:
    """Return the records' values by name, and the names that some records lack. `itemgetter` is faster than a Python loop."""
    if not names:
        return {}, []
    try:
        return dict(zip(names, zip(*map(itemgetter(*names, names[0]), records), strict=True), strict=False)), []
    except (KeyError, TypeError):
        records = [record or {} for record in records]
        absent = [name for name in names if any(name not in record for record in records)]
        return {name: [record.get(name) for record in records] for name in names}, absent


def _column(name: str, values: Sequence) -> np.ndarray:
    return _objects(values) if name in KEPT_WHOLE else _numbers(values)


def _objects(values: Sequence) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _numbers(values: Sequence) -> np.ndarray:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(dtype=float)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Turn garbage collection off inside the block: reading makes no cycles, and each collection would visit all records."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
