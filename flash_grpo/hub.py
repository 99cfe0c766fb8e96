"""Local copies of hub repositories. Nothing is downloaded: a hundred ranks that each fetch 70 GB are no start of a run.

What is missing is named, with the command that fetches it.
"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError


def local_folder(path: str, revision: str | None, key: str) -> Path:
    """The folder `path`, or this machine's copy of the hub repository `path` at a pinned revision.

    key: how the configuration calls it, for the one line of the ValueError.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise ValueError(f"{key}={path}: there is no such folder")
    if not revision:
        raise ValueError(f"{key}={path}: a hub id needs a pinned revision (a commit hash)")
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{key}={path}: neither a folder nor in this machine's hub cache at revision {revision}; fetch it with "
            f"`hf download {path} --revision {revision}` (if it is gated: accept its terms at "
            f"https://huggingface.co/{path} and `hf auth login` first)"
        ) from error
