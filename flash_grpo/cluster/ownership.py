"""Refuse to submit files of a study again that somebody else could have written: a job is a pickle, and runs as this user."""

import os
from collections.abc import Iterable
from pathlib import Path

OTHERS_WRITE = 0o022  # the mode's bits for the group and for everybody


class NotOursError(ValueError):
    """The reason, in one line, why a file of the study is not submitted again."""


def refuse_foreign_files(folder: Path, files: Iterable[Path]) -> None:
    """Raise NotOursError unless each file lies in `folder`, after following links, and only this user can change it.

    folder: the study's .submitit. It, and every folder between it and a file, must be this user's alone as well.
    """
    here = folder.resolve()
    for file in files:
        real = file.resolve()
        if not real.is_relative_to(here) or real == here:
            raise NotOursError(f"{file}: lies outside {folder}; give the sweep's command again to submit the run")
        for part in (here, *(here / inner for inner in _steps(real.relative_to(here)))):
            _refuse_foreign(part, folder)


def _steps(path: Path) -> list[Path]:
    """Return the path's folders, outermost first, and the path."""
    return [*reversed(path.parents[:-1]), path]


def _refuse_foreign(path: Path, folder: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise NotOursError(f"{path}: {error.strerror}; give the sweep's command again to submit the run") from error
    if status.st_uid != os.getuid():
        raise NotOursError(f"{path}: belongs to another user, so it is not run; give the sweep's command yourself")
    if status.st_mode & OTHERS_WRITE:
        raise NotOursError(f"{path}: others may write to it, so it is not run; if it is yours: chmod -R go-w {folder}")
