"""Find this machine's copies of hub repositories. The error for a missing one has the command that downloads it.

Nothing is downloaded here: a run must not begin with a hundred ranks that download 70 GB each.
"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError


def local_folder(path: str, revision: str | None, key: str) -> Path:
    """Return the folder `path`, or this machine's copy of the hub repository `path` at a pinned revision.

    key: dotted name of the setting that holds the path, for the message. ValueError in one line if there is neither.
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
