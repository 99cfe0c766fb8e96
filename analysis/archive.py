"""Pack a study into one small file: `python -m analysis.archive runs/<study> […] study.tar.xz`.

The file keeps every manifest and every record, with numbers rounded to six significant digits, and the small videos of one
run of each arm. It leaves out checkpoints, the other samples, and where on the machine the runs lay. `load_study` and the
report read it like the directories that it was made from.
"""

import io
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.arms import flat_config
from flash_grpo.arguments import Arguments
from flash_grpo.records.files import MANIFEST, RECORDS, SMALL_VIDEO, SMALL_VIDEOS, SMALL_VIDEOS_PROMPTS

KEPT = (MANIFEST, RECORDS, "mechanism.json", "vbench.json", "evaluation/base/vbench.json")
VIDEO_NAMES = (SMALL_VIDEOS_PROMPTS, *map(SMALL_VIDEO.format, range(16)))  # of one run's first, or last, evaluation
VIDEOS = tuple(f"{folder}/{name}" for folder in SMALL_VIDEOS for name in VIDEO_NAMES)
MOST_VIDEO_BYTES = 2 * 2**20  # of a study's small videos; those of further arms are left out
SUFFIX = ".tar.xz"
MOST_BYTES = 512 * 2**20  # of an unpacked archive: a thousand runs of 300 records
MOST_MEMBERS = 20_000
SMALLEST = 9 | lzma.PRESET_EXTREME  # twice the time, 8 % less: a study is packed once


class ArchiveError(ValueError):
    """The reason, in one line, why an archive is neither written nor read."""


def pack(studies: list[Path], archive: Path) -> None:
    """Write the studies into the archive. ArchiveError, and no file, if one of them holds no run or two have one name."""
    named = {study.resolve().name: study for study in studies}
    if len(named) < len(studies):
        raise ArchiveError(f"two studies have the same name, and would be mixed: {', '.join(map(str, studies))}")
    kept = {name: _kept_files(study) for name, study in named.items()}
    if empty := [named[name] for name, files in kept.items() if not files]:
        raise ArchiveError(f"{empty[0]}: holds no run (a directory with a {MANIFEST}), so there is nothing to pack")
    aside = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        with tarfile.open(aside, "w:xz", preset=SMALLEST) as tar:
            for name, file in [(name, file) for name, files in kept.items() for file in files]:
                _add(tar, file, Path(name) / file.relative_to(named[name]))
        os.replace(aside, archive)
    finally:
        aside.unlink(missing_ok=True)


def _kept_files(study: Path) -> list[Path]:
    found = (file for name in KEPT for file in (*study.glob(name), *study.glob(f"*/{name}")))
    kept = [file for file in found if file.is_file()]
    return sorted([*kept, *_kept_videos([file.parent for file in kept if file.name == MANIFEST])])


def _kept_videos(run_dirs: list[Path]) -> list[Path]:
    """Return the small videos of each arm's run with the lowest seed that has any, up to MOST_VIDEO_BYTES in all."""
    kept: dict[str, list[Path]] = {}
    left = MOST_VIDEO_BYTES
    for arm, _, run_dir in sorted(_seeds(run_dirs)):
        files = [file for name in VIDEOS if (file := run_dir / name).is_file()]
        size = sum(file.stat().st_size for file in files)
        if files and arm not in kept and size <= left:
            kept[arm] = files
            left -= size
    return [file for files in kept.values() for file in files]


def _seeds(run_dirs: list[Path]) -> Iterator[tuple[str, int, Path]]:
    """Yield arm, seed and directory of each run. What separates arms of a study is what `analysis.arms` separates them by."""
    for run_dir in run_dirs:
        try:
            manifest = json.loads((run_dir / MANIFEST).read_text())
            arm = json.dumps([manifest["method"], flat_config(manifest["config"])], sort_keys=True)
            yield arm, int(manifest["seed"]), run_dir
        except (ValueError, KeyError, TypeError, RecursionError):  # damaged: the report says so
            continue


def _add(tar: tarfile.TarFile, file: Path, name: Path) -> None:
    """Add one file, with its JSON rounded line by line; a line that is not JSON stays as it is."""
    data = file.read_bytes()
    if file.name == MANIFEST:
        data = _without_place(data)
    if file.suffix in (".json", ".jsonl"):
        parts = data.decode().splitlines(keepends=True) if file.suffix == ".jsonl" else [data.decode()]
        data = "".join(map(_rounded_json, parts)).encode()
    entry = tarfile.TarInfo(str(name))
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _without_place(manifest: bytes) -> bytes:
    """Return a manifest in which `runs` stands for where the runs lay; a damaged one stays as it is."""
    try:
        value = json.loads(manifest)
        root, value["config"]["runs_root"] = f"{value['config']['runs_root']}", "runs"
        told = {key: value[key].replace(f"{root}/", "runs/") for key in ("reason", "traceback") if key in value}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return manifest
    return json.dumps(value | told).encode()


def _rounded_json(text: str) -> str:
    try:
        return json.dumps(_rounded(json.loads(text)), separators=(",", ":")) + "\n" * text.endswith("\n")
    except (ValueError, RecursionError):
        return text


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def unpack(archive: Path) -> list[Path]:
    """Unpack the archive into a temporary directory that lives as long as the process; return the studies' directories.

    Only what `pack` writes is unpacked. ArchiveError if the archive is damaged, if it holds no study, or as soon as more than
    MOST_BYTES or MOST_MEMBERS have been read of it: a small archive may unpack to any size.
    """
    folder = tempfile.TemporaryDirectory(prefix="study-", ignore_cleanup_errors=True)
    _FOLDERS.append(folder)
    try:
        with lzma.open(archive) as stream:
            _unpack(_Bounded(stream), folder.name)
    except ArchiveError as error:
        raise ArchiveError(f"{archive}: {error}") from error
    except (lzma.LZMAError, tarfile.TarError, EOFError, OSError, ValueError) as error:
        why = f"is damaged, or not an archive of studies ({type(error).__name__}: {error}); {PACK_AGAIN}"
        raise ArchiveError(f"{archive}: {why}") from error
    if not (studies := sorted(Path(folder.name).iterdir())):
        raise ArchiveError(f"{archive}: holds no study")
    return studies


def _unpack(stream: "_Bounded", folder: str) -> None:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for count, member in enumerate(tar, 1):
            if count > MOST_MEMBERS:
                raise ArchiveError(f"holds more than {MOST_MEMBERS:,} files; unpack it yourself if you trust it")
            if _is_kept(member):
                tar.extract(member, folder, filter="data")
    while stream.read(2**16):  # up to the checksum at the end
        pass


class _Bounded:
    """Reads a stream, and raises ArchiveError instead of reading more than MOST_BYTES of it."""

    def __init__(self, stream: lzma.LZMAFile):
        self.stream, self.left = stream, MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ArchiveError(f"unpacks to more than {MOST_BYTES // 2**20} MB; unpack it yourself if you trust it")
        return data


def _is_kept(member: tarfile.TarInfo) -> bool:
    """Return True for a plain file STUDY/mechanism.json, STUDY/RUN/run.json, …; a sparse file may be of any size."""
    parts = Path(member.name).parts
    return member.type == tarfile.REGTYPE and any(str(Path(*parts[depth:])) in (*KEPT, *VIDEOS) for depth in (1, 2))


PACK_AGAIN = "copy it again, or pack the studies again with python -m analysis.archive"
_FOLDERS: list[tempfile.TemporaryDirectory] = []


def main(arguments: list[str] | None = None) -> None:
    parser = Arguments(prog="python -m analysis.archive", description=__doc__.split("\n")[0])
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("archive", type=Path, help=f"the file to write, *{SUFFIX}")
    options = parser.parse_args(arguments)
    if options.archive.suffixes[-2:] != [".tar", ".xz"]:
        parser.error(f"the last argument is the file to write and ends in {SUFFIX}")
    try:
        pack(options.studies, options.archive)
    except ArchiveError as error:
        parser.exit(2, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: {options.archive}: {error.strerror}\n")
    print(f"{options.archive}: {options.archive.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
