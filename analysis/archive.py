"""Pack a study into one small file: `python -m analysis.archive runs/<study> […] study.tar.xz`.

The file keeps every manifest and every record, with numbers rounded to six significant digits, and leaves out checkpoints
and samples. `load_study` and the report read it like the directories that it was made from.
"""

import argparse
import io
import json
import lzma
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import MANIFEST, RECORDS

KEPT = (MANIFEST, RECORDS, "mechanism.json", "vbench.json", "evaluation/base/vbench.json")
SUFFIX = ".tar.xz"


def pack(studies: list[Path], archive: Path) -> None:
    with tarfile.open(archive, "w:xz") as tar:
        for study in studies:
            for file in sorted(file for name in KEPT for file in (*study.glob(name), *study.glob(f"*/{name}"))):
                _add(tar, file, Path(study.resolve().name) / file.relative_to(study))


def _add(tar: tarfile.TarFile, file: Path, name: Path) -> None:
    """Add one file, with its JSON rounded line by line; a line that is not JSON stays as it is."""
    text = file.read_text()
    parts = text.splitlines(keepends=True) if file.suffix == ".jsonl" else [text]
    data = "".join(map(_rounded_json, parts)).encode()
    entry = tarfile.TarInfo(str(name))
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _rounded_json(text: str) -> str:
    try:
        return json.dumps(_rounded(json.loads(text)), separators=(",", ":")) + "\n" * text.endswith("\n")
    except ValueError:
        return text


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def unpack(archive: Path) -> list[Path]:
    """Unpack the archive into a temporary directory that lives as long as the process; return the studies' directories.

    DamagedFileError if the archive is not one, or damaged anywhere: it is read to its end, where its checksum is.
    """
    folder = tempfile.TemporaryDirectory(prefix="study-", ignore_cleanup_errors=True)
    _FOLDERS.append(folder)
    try:
        with lzma.open(archive) as file, tarfile.open(fileobj=file) as tar:
            tar.extractall(folder.name, filter="data")
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, ValueError, KeyError, lzma.LZMAError, tarfile.TarError) as error:
        raise DamagedFileError(archive, f"is damaged, or not an archive of studies ({error})", PACK_AGAIN) from error
    return sorted(Path(folder.name).iterdir())


PACK_AGAIN = "copy it again, or pack the studies again with python -m analysis.archive"
_FOLDERS: list[tempfile.TemporaryDirectory] = []


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.archive", description=__doc__.split("\n")[0])
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("archive", type=Path, help=f"the file to write, *{SUFFIX}")
    options = parser.parse_args(arguments)
    if options.archive.suffixes[-2:] != [".tar", ".xz"]:
        parser.error(f"the last argument is the file to write and ends in {SUFFIX}")
    pack(options.studies, options.archive)
    print(f"{options.archive}: {options.archive.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
