"""Read and write the files of a run directory: run.json and records.jsonl."""

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from flash_grpo.records.checked import DamagedFileError, T, from_json, lacking, misfit, parsed, too_deep
from flash_grpo.records.full_disk import naming_full_disk
from flash_grpo.records.schema import FORMAT, TIME, EvalRecord, FailureRecord, IterationRecord, RunManifest
from flash_grpo.records.slurm_job import SlurmJob

MANIFEST, RECORDS = "run.json", "records.jsonl"
SMALL_VIDEOS = ("samples/start", "samples/end")  # folders of animations, of the first and the last evaluation
SMALL_VIDEO, SMALL_VIDEOS_PROMPTS = "{:02d}.webp", "prompts.json"  # in them: an animation for each prompt of the list
RECORD_TYPES = {"iteration": IterationRecord, "evaluation": EvalRecord, "failure": FailureRecord}
PROGRESS = ("iteration", "evaluation")  # kinds of records that tell how far a run came, and at what cost
ALWAYS = ("iteration", "cost", "evaluation_seconds")  # of PROGRESS, in every version; other keys may be missing
RESTORE = "put it back from a copy"
ON_MANIFEST = f"{RESTORE}, or move it away and give the run's command again: it goes on from its newest checkpoint"


def as_json(record: Any) -> str:
    """Return a record as one line of strict JSON; a number that is not finite becomes null, never `NaN`."""
    return json.dumps(_finite(dataclasses.asdict(record)), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`. Readers, also after a crash, find the old file or the new one, never half.

    FullDiskError if there is no space; then the old file stays.
    """
    aside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        with naming_full_disk(path), open(aside, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


# -- run.json ----------------------------------------------------------------------------------------------------------


def write_manifest(run_dir: Path, manifest: RunManifest) -> None:
    write_atomically(run_dir / MANIFEST, json.dumps(_finite(dataclasses.asdict(manifest)), indent=1) + "\n")


def read_manifest(run_dir: Path) -> RunManifest | None:
    """Read the run's manifest; None if there is none. Keys that this version does not know are ignored.

    DamagedFileError if it cannot be read or a value is missing or of another type.
    """
    path = Path(run_dir) / MANIFEST
    if not path.exists():
        return None
    entry = read_object(path, ON_MANIFEST)
    try:
        manifest = from_json(RunManifest, entry)
        for start in manifest.starts:
            datetime.strptime(start.time, TIME)
            SlurmJob.of(start.slurm)
    except ValueError as error:
        there = entry.get("format", 1)
        other = f" (another version's: format {there}, this one has {FORMAT})" if there != FORMAT else ""
        raise DamagedFileError(path, f"{error}{other}", ON_MANIFEST) from None
    return manifest


def read_object(path: Path, way_out: str) -> dict[str, Any]:
    """Read a file that holds one JSON object. DamagedFileError, which ends with `way_out`, if it cannot be read."""
    try:
        entry = parsed(path.read_bytes())
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read ({error.strerror})", way_out) from error
    except ValueError as error:
        raise DamagedFileError(path, str(error), way_out) from None
    if too_deep(entry):
        raise DamagedFileError(path, "nests too deeply", way_out)
    return entry


def read_as(kind: type[T], path: Path, way_out: str) -> T:
    """Read a file that holds one JSON object as a `kind`, a dataclass. DamagedFileError as in `read_object`."""
    entry = read_object(path, way_out)
    try:
        return from_json(kind, entry)
    except ValueError as error:
        raise DamagedFileError(path, str(error), way_out) from None


# -- records.jsonl -----------------------------------------------------------------------------------------------------


class RecordWriter:
    """Appends records to a run's records.jsonl, after cutting the file back to `length` bytes, where the checkpoint ends."""

    def __init__(self, run_dir: Path, length: int):
        self.path = Path(run_dir) / RECORDS
        self.path.touch()
        if self.length < length:
            raise RuntimeError(f"{self.path} is shorter than its checkpoint says: records are missing")
        os.truncate(self.path, length)

    def append(self, record: Any) -> None:
        """Append the whole record or, with FullDiskError, nothing, so that the next record begins on a line of its own."""
        length = self.path.stat().st_size
        try:
            with naming_full_disk(self.path), open(self.path, "a") as file:
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


def read_records(run_dir: Path, length: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the run's records as dictionaries, oldest first; a last line cut short by a crash is skipped.

    A line of blanks is skipped too: so an unreadable one can be given up without moving those after it. DamagedFileError
    names the first line that is not a record. length: read this many bytes; DamagedFileError if there are fewer.
    """
    lines = _lines(run_dir, length)
    return _records(Path(run_dir) / RECORDS, enumerate(lines, 1))


def read_newest_first(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the records as `read_records` does, but newest first, for callers that want the last ones of a long run."""
    lines = _lines(run_dir)
    return _records(Path(run_dir) / RECORDS, zip(range(len(lines), 0, -1), reversed(lines), strict=True))


def last_recorded(run_dir: Path) -> int:
    """Return the newest iteration in the records, 0 if there is none. Lines that are not records do not count."""
    for line in reversed(_lines(run_dir)):
        try:
            record = _record(line)
        except ValueError:
            continue
        if record["kind"] in PROGRESS:
            return record["iteration"]
    return 0


def _lines(run_dir: Path, length: int | None = None) -> list[bytes]:
    path = Path(run_dir) / RECORDS
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read ({error.strerror})", RESTORE) from error
    if length is not None and len(data) < length:
        raise DamagedFileError(path, f"has {len(data)} bytes of {length}: records are missing", RESTORE)
    if length and data[length - 1 : length] != b"\n":
        raise DamagedFileError(path, f"has no end of a line at byte {length}, where the checkpoint ends", RESTORE)
    *lines, _ = data[:length].split(b"\n")  # what follows the last newline is cut short, or still being written
    return lines


def _records(path: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[dict[str, Any]]:
    for number, line in lines:
        try:
            if line.strip(b" "):
                yield _record(line)
        except ValueError as error:
            way_out = f"put the file back from a copy, or give this line up: LC_ALL=C sed -i '{number}s/./ /g' {path}"
            raise DamagedFileError(path, str(error), way_out, number) from None


def _record(line: bytes) -> dict[str, Any]:
    """Parse a record. ValueError if it is none, or lacks what every version has written. Unknown kinds are not checked."""
    record = parsed(line)
    kind = record.get("kind")
    if not isinstance(kind, str):
        raise ValueError("is not a record: it has no kind")
    problem = misfit(RECORD_TYPES[kind], record) if kind in RECORD_TYPES else ""
    if kind in PROGRESS and not problem:
        problem = lacking(record, ALWAYS) or lacking(record["cost"], ("device_seconds",))
    if problem:
        raise ValueError(problem)
    return record
