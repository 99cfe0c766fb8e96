"""Why a start ended, from the logs of its ranks."""

import re

RANK = re.compile(r"^\[rank\d+\]: ?")  # torch marks the lines of a traceback, where there are several ranks


LOST_A_RANK = re.compile(r"gloo/transport|Dist(Backend|Network|Store)Error")


def last_words(logs: list[str]) -> str:
    """Why the last start that the ranks' logs tell of ended: an exception, else what srun said of it, else a last line.

    An exception that only says that another rank is gone comes after what srun said.
    """
    starts = [_last_start(text) for text in logs]
    raised = [error for lines in starts for error in _exception(lines)]
    lost = [error for error in raised if LOST_A_RANK.search(error)]
    killed = [
        line.removeprefix("srun: error: ") for lines in starts for line in lines if line.startswith("srun: error")
    ]
    own = [line for lines in starts for line in lines if not line.startswith(("srun:", "slurmstepd:", "submitit "))]
    causes = [error for error in raised if error not in lost]
    return next(iter([*causes, *killed, *lost, *own[-1:]]), "ended without a word")


def _last_start(text: str) -> list[str]:
    lines = text.rpartition("- Starting with ")[2].split("\n")
    shown = [line.rpartition("\r")[2].rstrip() for line in lines if line.strip()]
    return [RANK.sub("", line) for line in shown]


def _exception(lines: list[str]) -> list[str]:
    """The line after the last traceback's frames, or the one in which bad input was refused."""
    traces = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    after = lines[traces[-1] + 1 :] if traces else []
    refused = [line for line in lines if line.startswith("error: ")]
    return [line for line in after if not line.startswith(" ")][:1] or refused[:1]
