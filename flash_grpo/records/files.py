"""Read and write the files of a run directory: run.json and records.jsonl."""

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from flash_grpo.records.schema import Bill, BilledStart, ProgramStart, RunManifest

MANIFEST, RECORDS = "run.json", "records.jsonl"


class Dataclass(Protocol):
    """Any dataclass, in a signature."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Dataclass)


def as_json(record: Any) -> str:
    """Return a record as one line of strict JSON; a number that is not finite becomes null, never `NaN`."""
    return json.dumps(_finite(dataclasses.asdict(record)), allow_nan=False)


def from_json(kind: type[T], entry: dict[str, Any]) -> T:
    """Build a `kind`, a dataclass, from a JSON object. Keys that this version does not know are ignored."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in entry.items() if key in names})


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`. Readers, also after a crash, find the old file or the new one, never half."""
    aside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        with open(aside, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def write_manifest(run_dir: Path, manifest: RunManifest) -> None:
    write_atomically(run_dir / MANIFEST, json.dumps(_finite(dataclasses.asdict(manifest)), indent=1) + "\n")


def read_manifest(run_dir: Path) -> RunManifest | None:
    """Read the run's manifest; None if there is none. Keys that this version does not know are ignored."""
    path = Path(run_dir) / MANIFEST
    if not path.exists():
        return None
    entry = json.loads(path.read_text())
    entry["starts"] = [from_json(ProgramStart, start) for start in entry.get("starts") or []]
    if bill := entry.get("bill"):
        billed = [from_json(BilledStart, start) for start in bill.get("starts", [])]
        entry["bill"] = from_json(Bill, {**bill, "starts": billed})
    return from_json(RunManifest, entry)


class RecordWriter:
    """Appends records to a run's records.jsonl, after cutting the file back to `length` bytes, where the checkpoint ends."""

    def __init__(self, run_dir: Path, length: int):
        self.path = Path(run_dir) / RECORDS
        self.path.touch()
        if self.length < length:
            raise RuntimeError(f"{self.path} is shorter than its checkpoint says: records are missing")
        os.truncate(self.path, length)

    def append(self, record: Any) -> None:
        """Append the whole record or, on a full disk, nothing, so that the next record begins on a line of its own."""
        length = self.path.stat().st_size
        try:
            with open(self.path, "a") as file:
                file.write(as_json(record) + "\n")
        except OSError:
            os.truncate(self.path, length)
            raise

    @property
    def length(self) -> int:
        """Return the length of the file in bytes, after flushing it to disk."""
        with open(self.path) as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size


def read_records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the run's records as dictionaries, oldest first; a last line cut short by a crash is skipped."""
    path = Path(run_dir) / RECORDS
    if not path.exists():
        return
    with open(path) as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def read_newest_first(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the run's records as dictionaries, newest first, for callers that want only the last ones of a long run."""
    path = Path(run_dir) / RECORDS
    for line in reversed(path.read_text().splitlines(keepends=True) if path.exists() else []):
        if line.endswith("\n"):
            yield json.loads(line)
