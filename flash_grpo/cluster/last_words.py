"""Explain why a start of a job ended, from the logs of its ranks."""

import re

RANK = re.compile(r"^\[rank\d+\]: ?")  # torch's mark before each line of a traceback when there are several ranks
LOST_A_RANK = re.compile(r"gloo/transport|Dist(Backend|Network|Store)Error")  # errors that only report a lost peer
NOT_THE_RUN = ("srun:", "slurmstepd:", "submitit ")


def last_words(logs: list[str]) -> str:
    """Explain, from the texts of the ranks' logs, why the last start ended.

    In this order: an exception of a rank's own; srun's message; an exception that only reports a lost peer; the last line
    of a log.
    """
    starts = [_last_start(text) for text in logs]
    exceptions = [error for lines in starts for error in _exception(lines)]
    lost = [error for error in exceptions if LOST_A_RANK.search(error)]
    own = [error for error in exceptions if error not in lost]
    errors = [line for lines in starts for line in lines if line.startswith("srun: error")]
    killed = [line.removeprefix("srun: error: ") for line in errors]
    written = [line for lines in starts for line in lines if not line.startswith(NOT_THE_RUN)]
    return next(iter([*own, *killed, *lost, *written[-1:]]), "ended without a word")


def _last_start(text: str) -> list[str]:
    """Return the lines of the log's last start. A job appends to one log at every start."""
    lines = text.rpartition("- Starting with ")[2].split("\n")
    shown = [line.rpartition("\r")[2].rstrip() for line in lines if line.strip()]
    return [RANK.sub("", line) for line in shown]


def _exception(lines: list[str]) -> list[str]:
    """Return the message of the last traceback, else the line that refused bad input, as a list of at most one line."""
    traces = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    after = lines[traces[-1] + 1 :] if traces else []
    refused = [line for line in lines if line.startswith("error: ")]
    return [line for line in after if not line.startswith(" ")][:1] or refused[:1]
