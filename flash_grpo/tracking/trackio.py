"""Write a run for Trackio: `trackio show --project STUDY`. The step is the iteration; every row has the axes too.

Rows go straight to Trackio's database, one transaction a look, each under a key of its own: `trackio.log` hands them to a
thread, and a kill would lose them silently. Where Trackio keeps its projects is Trackio's own setting, TRACKIO_DIR.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import MEDIA_DIR

from flash_grpo.tracking.pictures import Picture
from flash_grpo.tracking.points import SPENT, Point, TrackedRun

LOOK = "trackio show --project {study}"


class Tracker:
    """One run in Trackio's database. See `follow.Tracker`."""

    def __init__(self, run: TrackedRun, spent: list[float], store: Path):
        self.run, self.project = run, run.study
        rows = SQLiteStorage.get_logs(self.project, run.name, run_id=run.id)
        there = [row.get(SPENT) for row in rows if not any(isinstance(value, dict) for value in row.values())]
        if there != spent[: len(there)]:
            SQLiteStorage.delete_run(self.project, run.name, run_id=run.id)
            rows, there = [], []
        self.held = len(there)
        self.shown = {_hash(value) for row in rows for value in row.values() if isinstance(value, dict)}

    def record(self, points: list[Point]) -> None:
        rows = [{**point.values, **point.axes} for point in points]
        self._log(rows, points, [f"{self.run.id}-{point.position}" for point in points])

    def show(self, pictures: list[Picture]) -> None:
        rows = [{picture.name: self._kept(picture), **picture.point.axes} for picture in pictures]
        self._log(rows, [picture.point for picture in pictures], [f"{self.run.id}-{p.hash}" for p in pictures])

    def end(self, status: str, why: str) -> None:
        """Do nothing: Trackio's runs have no end."""

    def _log(self, rows: list[dict[str, Any]], points: list[Point], keys: list[str]) -> None:
        """Write rows; those whose key is there already are ignored."""
        SQLiteStorage.bulk_log(
            project=self.project,
            run=self.run.name,
            run_id=self.run.id,
            metrics_list=rows,
            steps=[point.iteration for point in points],
            timestamps=[_time(point.time) for point in points],
            log_ids=keys,
            config={**self.run.described, "_Group": self.run.group, "_Created": _time(self.run.began)},
        )

    def _kept(self, picture: Picture) -> dict[str, Any]:
        """Copy a picture to where Trackio's dashboard looks for it; return what a row says of it."""
        with TemporaryDirectory() as folder:
            file = Path(folder, f"picture.{picture.suffix}")
            file.write_bytes(picture.data)
            kept = trackio.Image(
                str(file), caption=picture.caption or None
            )  # a GIF too: Trackio's Video does not play it
            kept._save(self.project, self.run.name, picture.point.iteration)
        return kept._to_dict()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _hash(value: dict[str, Any]) -> str:
    """Return the hash of the file of a picture that a row tells of; '' if there is none."""
    file = MEDIA_DIR / str(value.get("file_path", "?"))
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
