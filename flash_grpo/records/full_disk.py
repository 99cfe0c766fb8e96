"""Call a full disk one, whichever library fails to write to it. Standard library only."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHORTAGES = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up"}
RESERVE, RESERVED = ".reserve", 256 * 1024  # bytes
MAKE_ROOM = "make room and give the command again: a run goes on from its newest checkpoint"


class FullDiskError(OSError):
    """A file cannot be written: its file system is full or a quota is used up. The message is one line with free space."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Replace any error in the block that says there is no space by a FullDiskError.

    path: the file that it names where the error itself names none.
    """
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if (number := _shortage(error)) is None:
            raise
        file = Path(getattr(error, "filename", None) or path)
        raise FullDiskError(number, f"{SHORTAGES[number]} ({free_space(file)}); {MAKE_ROOM}", str(file)) from error


class Reserve:
    """Space that a run keeps while it runs, so that run.json and the log can say why it ends, also on a full disk."""

    def __init__(self, run_dir: Path):
        self.path = run_dir / RESERVE

    def take(self) -> None:
        """Take the space. FullDiskError if there is not even as much."""
        with naming_full_disk(self.path), open(self.path, "wb") as file:
            file.write(os.urandom(RESERVED))  # zeros would take no space on some file systems

    def release(self) -> None:
        self.path.unlink(missing_ok=True)


def _shortage(error: BaseException) -> int | None:
    """Return ENOSPC or EDQUOT if the error is one; of other libraries' errors the text tells."""
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return error.errno
    return next((number for number in SHORTAGES if os.strerror(number) in str(error)), None)


def full_disk(path: Path) -> str:
    """Say that the file system of `path` is full, where it has not even room for a Reserve; '' if it has."""
    system = os.statvfs(_existing(path))
    full = system.f_bavail * system.f_frsize < RESERVED
    return f"{path}: {SHORTAGES[errno.ENOSPC]} ({free_space(path)}); {MAKE_ROOM}" if full else ""


def free_space(path: Path) -> str:
    """Say how much of the file system that holds `path`, which need not exist, is free."""
    system = os.statvfs(_existing(path))
    if system.f_files and not system.f_favail:
        return "its file system has no entry for another file left: delete some"
    free, size = system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize
    return f"{_size(free)} of {_size(size)} are free"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _size(count: float) -> str:
    """Format bytes.

    >>> [_size(count) for count in (0, 12_345, 8_000_000, 2.5e12)]
    ['0 B', '12.3 kB', '8 MB', '2.5 TB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
