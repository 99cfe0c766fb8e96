"""Where a pipeline's files are: a folder, or the local copy of a hub repository at a pinned revision.

Nothing is downloaded here: a hundred ranks that each fetch 70 GB are no start of a run. What is missing is named, with
the command that fetches it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

TINY = "tiny_wan"
INDEX = "model_index.json"


def pipeline_folder(path: str, revision: str | None) -> Path:
    """The folder that holds the pipeline `path`, in diffusers' layout; ValueError in one line where there is none."""
    if path == TINY:
        return Path(__file__).parent / TINY
    folder = Path(path).expanduser()
    if not folder.is_dir() and path.count("/") == 1 and not path.startswith((".", "~", "/")):
        folder = _cached(path, revision)
    if not (folder / INDEX).is_file():
        raise ValueError(f"model.path={path}: no {INDEX} there; expected a folder in diffusers' layout or a hub id")
    return folder


def index_of(folder: Path) -> dict[str, Any]:
    """The pipeline's index: part name -> [library, class], and its options."""
    return json.loads((folder / INDEX).read_text())


def fingerprint(folder: Path, parts: tuple[str, ...]) -> str:
    """Tells two versions of the pipeline's parts apart without reading their weights: names, sizes, times of their files.

    Files of a hub snapshot are links whose targets are named by their content's hash, which is used instead of the time.
    """
    files = sorted(file for part in parts for file in (folder / part).rglob("*") if file.is_file())
    return hashlib.sha256(json.dumps([_identity(file, folder) for file in files]).encode()).hexdigest()


def _identity(file: Path, folder: Path) -> list[str | int]:
    content = file.resolve().name if file.is_symlink() else file.stat().st_mtime_ns
    return [str(file.relative_to(folder)), file.stat().st_size, content]


def _cached(repository: str, revision: str | None) -> Path:
    if not revision:
        raise ValueError(f"model.revision: {repository} is a hub id and needs a pinned revision (a commit hash)")
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"model.path={repository}: neither a folder nor in this machine's hub cache at revision {revision}; fetch it "
            f"with `hf download {repository} --revision {revision}` (if it is gated: accept its terms at "
            f"https://huggingface.co/{repository} and `hf auth login` first)"
        ) from error
