"""Find, read and print the logs of a job's ranks."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from flash_grpo.records.submissions import SubmittedRun

POLL_S = 0.5


def log_files(job: SubmittedRun) -> list[Path]:
    """Return the log of each rank, in order. The file of a rank that has not started does not exist."""
    return [Path(job.folder) / f"{job.job_id}_{rank}_log.out" for rank in range(job.ranks)]


def log_texts(job: SubmittedRun) -> list[str]:
    """Read the logs that exist, in the order of the ranks."""
    return [path.read_text(errors="replace") for path in log_files(job) if path.exists()]


def print_logs(paths: list[Path], is_over: Callable[[], bool]) -> None:
    """Print the logs, and whatever is appended to them until `is_over`. With several ranks each line begins with its rank.

    is_over: asked before each reading, so that the last lines of a run that has just ended are printed too.
    """
    read: Counter[int] = Counter()
    while True:
        over = is_over()
        for rank, path in enumerate(paths):
            read[rank] += _print_from(path, read[rank], f"{rank}: " if len(paths) > 1 else "")
        if over:
            return
        time.sleep(POLL_S)


def _print_from(path: Path, offset: int, prefix: str) -> int:
    """Print the complete lines after `offset` bytes and return their length. Of a progress bar, print the last state."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(offset)
        new = file.read()
    complete = new[: new.rfind(b"\n") + 1]
    for line in complete.decode(errors="replace").split("\n")[:-1]:
        print(prefix + line.rstrip("\r").rpartition("\r")[2], flush=True)
    return len(complete)
