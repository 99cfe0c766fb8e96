"""Let a tracker follow a sweep while its launcher lives: `python -m flash_grpo.track` as a program of its own.

Whatever becomes of it, the sweep goes on: nothing is lost, since the same command sends the records afterwards.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from flash_grpo.cluster.points import SweepPoint
from flash_grpo.records.submissions import FOLDER

log = logging.getLogger(__name__)
THIS_CODE = str(Path(__file__).resolve().parents[2])
LAST_WORDS_S = 120.0  # how long the follower may take to send the last records


@contextmanager
def followed(points: list[SweepPoint], detach: bool = False) -> Iterator[None]:
    """Inside the block, send the records of the points' studies to the tracker that their `track` names, if it names one.

    detach: only print the command, because the launcher does not stay.
    """
    tracker = OmegaConf.select(points[0].cfg, "track")
    with ExitStack() as stack:
        for study in dict.fromkeys(Path(point.directory).parent for point in points) if tracker else ():
            if detach:
                log.info("to follow the sweep: %s", command(study, tracker))
            else:
                stack.callback(_Follower(study, tracker).end)
        yield


def command(study: Path, tracker: str) -> str:
    """Return what a user types to follow a study."""
    return f"python -m flash_grpo.track {study} --to {tracker}"


class _Follower:
    """A follower of one study. It ends when its standard input does: with the launcher, however that ends."""

    def __init__(self, study: Path, tracker: str) -> None:
        self.study, self.tracker = study, tracker
        self.log_file = study / FOLDER / f"track-{tracker}.log"
        self.process = self._started()
        if self.process:
            log.info("%s follows %s; log: %s", tracker, study, self.log_file)
            threading.Thread(target=self._wait, daemon=True).start()

    def end(self) -> None:
        """Let it send the last records, and end."""
        if self.process is None or self.process.stdin is None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _started(self) -> "subprocess.Popen[bytes] | None":
        path = os.pathsep.join(filter(None, [THIS_CODE, os.environ.get("PYTHONPATH")]))
        call = [sys.executable, "-m", "flash_grpo.track", str(self.study), "--to", self.tracker, "--beside"]
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log_file, "ab") as output:
                return subprocess.Popen(
                    call,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # a Ctrl-C is for the launcher
                    env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
                )
        except OSError as error:
            self._warn(str(error))
            return None

    def _wait(self) -> None:
        """Warn if it fails."""
        if self.process and (code := self.process.wait()):
            lines = self.log_file.read_text(errors="replace").split("\n")
            self._warn(next((line for line in reversed(lines) if line.strip()), f"exit code {code}"))

    def _warn(self, why: str) -> None:
        after = command(self.study, self.tracker)
        log.warning("track=%s has stopped, the sweep goes on: %s (again, at any time: %s)", self.tracker, why, after)
