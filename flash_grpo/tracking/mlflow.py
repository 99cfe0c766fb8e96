"""Write a run to MLflow: to the server of MLFLOW_TRACKING_URI, else into the database STUDY/mlflow/mlflow.db.

The experiment is the study, the step is the iteration. MLflow chooses its runs' ids, so a run is found by the tag
`flash_grpo.id`. `position` is logged after the other metrics of a record: it says how many records MLflow holds. A record that
was sent without it is sent again, and MLflow ignores a metric that it has with the same step, time and value.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flash_grpo.tracking.pictures import Picture
from flash_grpo.tracking.points import Point, TrackedRun

if not os.environ.get("MLFLOW_TRACKING_URI"):
    import sqlalchemy  # noqa: F401 -- what a local database needs, and mlflow-skinny comes without

LOOK = "mlflow ui --backend-store-uri sqlite:///{store}/mlflow.db, or the server of MLFLOW_TRACKING_URI"
ID, POSITION = "flash_grpo.id", "position"
LONGEST_VALUE, MOST_PARAMS, MOST_METRICS = 500, 100, 999  # MLflow's bounds of a parameter and of a batch
ENDS = {"completed": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


class Tracker:
    """One run in MLflow. See `follow.Tracker`."""

    def __init__(self, run: TrackedRun, spent: list[float], store: Path):
        local = f"sqlite:///{(store / 'mlflow.db').resolve()}"
        self.client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or local)
        self.experiment = self._experiment(run.study, store)
        found = self._found(run)
        there = self._spent_of(found) if found else []
        if found and there != spent[: len(there)]:  # it was cut back: the old version goes to MLflow's bin
            self.client.delete_run(found.info.run_id)
            found, there = None, []
        self.id, self.held = (found or self._created(run)).info.run_id, len(there)
        self.shown = set[str]()  # a picture that is sent again replaces itself
        self.client.update_run(self.id, status="RUNNING")

    def record(self, points: list[Point]) -> None:
        for point in points:
            time, step = round(point.time * 1000), point.iteration
            metrics = [Metric(name, value, time, step) for name, value in point.values.items()]
            for batch in _batches(metrics, MOST_METRICS):
                self.client.log_batch(self.id, metrics=batch)
            self.client.log_batch(self.id, metrics=[Metric(POSITION, point.spent, time, point.position)])

    def show(self, pictures: list[Picture]) -> None:
        with TemporaryDirectory() as folder:
            for picture in pictures:
                file = Path(folder, f"{Path(picture.name).name}.{picture.suffix}")
                file.write_bytes(picture.data)
                self.client.log_artifact(self.id, str(file), str(Path(picture.name).parent))

    def end(self, status: str, why: str) -> None:
        self.client.set_tag(self.id, "status", f"{status}: {why}" if why else status)
        if status != "running":
            self.client.set_terminated(self.id, ENDS[status])

    def _experiment(self, study: str, store: Path) -> str:
        if known := self.client.get_experiment_by_name(study):
            return known.experiment_id
        artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (store / "artifacts").resolve().as_uri()
        return self.client.create_experiment(study, artifacts)

    def _found(self, run: TrackedRun) -> Run | None:
        found = self.client.search_runs([self.experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        return found[0] if found else None

    def _spent_of(self, run: Run) -> list[float]:
        """Return `Point.spent` of each record that MLflow holds."""
        try:
            history = self.client.get_metric_history(run.info.run_id, POSITION)
        except MlflowException:  # servers differ in what they say of a metric that was never logged
            return []
        return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]

    def _created(self, run: TrackedRun) -> Run:
        git = run.about.get("git") or {}
        tags = {ID: run.id, **run.tags, "mlflow.source.git.commit": str(git.get("commit", ""))}
        made = self.client.create_run(self.experiment, round(run.began * 1000), tags, run.name)
        params = [Param(name, value[:LONGEST_VALUE]) for name, value in _parameters(run.described, "")]
        for batch in _batches(params, MOST_PARAMS):
            self.client.log_batch(made.info.run_id, params=batch)
        return made


def _parameters(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield each value of a configuration as text, by its dotted key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _parameters(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
