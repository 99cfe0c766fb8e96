"""Turn a run's directory into what trackers take: what the run is, and a point for each of its records. No tracker here."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flash_grpo.records.files import PROGRESS, read_manifest, read_records
from flash_grpo.records.schema import TIME, RunManifest

LONGEST_NAME = 60  # of a prompt in a point's name
NOT_A_VALUE = ("kind", "iteration")  # of a record: its name's first part, and its place
ITERATION, SPENT = "x/iteration", "x/device_seconds_with_evaluation"
ABOUT = ("git", "hardware", "packages", "world_size", "config_hash", "prompts_hash", "schedule_hash")


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as trackers know it.

    id: the same at every call, and another one for a run that was deleted and made anew; safe as a file's name.
    group: the method. noise: of the SDE. config: the resolved configuration. about: the facts of ABOUT, as in run.json.
    status: completed, failed or running, as in run.json; why: its reason.
    began: of the first start, seconds since 1970; 0 if run.json names no start.
    """

    directory: Path
    study: str
    name: str
    id: str
    group: str
    noise: str
    world_size: int
    began: float
    status: str
    why: str
    config: dict[str, Any]
    about: dict[str, Any]

    @property
    def tags(self) -> dict[str, str]:
        """Return what runs are grouped by."""
        return {"method_name": self.group, "noise": self.noise}

    @property
    def described(self) -> dict[str, Any]:
        """Return all that is known of the run, with what it is grouped by first."""
        return {**self.tags, **self.config, "run": self.about}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One record, as trackers take it.

    position: its place among the run's iterations and evaluations; a repeated iteration has the place of the first try.
    kind: iteration or evaluation. spent: device-seconds of all work up to here, evaluations included.
    time: about when it was written, seconds since 1970: records hold no clock, so this is the first start plus `spent` a rank.
    values: every number of the record, by a name like `evaluation.reward_parts/colour`; what is null is left out.
    axes: what curves may be drawn over, by name: ITERATION, SPENT, and the cost without evaluations.
    """

    position: int
    kind: str
    iteration: int
    spent: float
    time: float
    values: dict[str, float]
    axes: dict[str, float]


def read_run(directory: Path) -> TrackedRun | None:
    """Read what a run is; None if it has no run.json yet. DamagedFileError if that cannot be read."""
    manifest = read_manifest(directory)
    if manifest is None:
        return None
    first = manifest.starts[0].time if manifest.starts else ""
    return TrackedRun(
        directory=directory,
        study=directory.resolve().parent.name,
        name=directory.name,
        id=_id(directory, manifest, first),
        group=manifest.method,
        noise=_noise(manifest.config),
        world_size=max(1, manifest.world_size),
        began=datetime.strptime(first, TIME).timestamp() if first else 0.0,
        status=manifest.status,
        why=manifest.reason,
        config=manifest.config,
        about={name: getattr(manifest, name) for name in ABOUT},
    )


def read_points(run: TrackedRun) -> list[Point]:
    """Read a run's records as points, oldest first; a failure is no point. DamagedFileError if one cannot be read."""
    records = (record for record in read_records(run.directory) if record["kind"] in PROGRESS)
    return [_point(run, position, record) for position, record in enumerate(records)]


def flattened(value: dict[str, Any] | list[Any], section: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a JSON value with their names; texts and nulls are left out.

    What is nested is a section of its own, because trackers draw a section, the part before the slash, together.

    >>> dict(flattened({"loss": 0.1, "reward_parts": {"colour": 0.5}, "steps": [0.25, None]}, "iteration"))
    {'iteration/loss': 0.1, 'iteration.reward_parts/colour': 0.5, 'iteration.steps/00': 0.25}
    """
    named = value.items() if isinstance(value, dict) else [(f"{index:02d}", inner) for index, inner in enumerate(value)]
    for index, (key, inner) in enumerate(named):
        number = f"{index:03d} " if section.endswith(".prompt_rewards") else ""  # long texts may begin alike
        name = number + _printable(key)
        if isinstance(inner, dict | list):
            yield from flattened(inner, f"{section}.{name}")
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            yield f"{section}/{name}", inner


def _point(run: TrackedRun, position: int, record: dict[str, Any]) -> Point:
    kind, iteration, cost = record["kind"], record["iteration"], record["cost"]
    spent = cost["device_seconds"] + record["evaluation_seconds"]
    costs = {"x/device_seconds": cost["device_seconds"], "x/pflop": cost.get("pflop")}
    axes = {ITERATION: iteration, SPENT: spent, **costs}
    return Point(
        position=position,
        kind=kind,
        iteration=iteration,
        spent=spent,
        time=run.began + spent / run.world_size,
        values=dict(flattened({key: value for key, value in record.items() if key not in NOT_A_VALUE}, kind)),
        axes={name: value for name, value in axes.items() if value is not None},
    )


def _printable(key: str) -> str:
    """Return a key with only the characters that every tracker takes in a name."""
    return " ".join(re.sub(r"[^\w.: -]", " ", key).split())[:LONGEST_NAME]


def _noise(config: dict[str, Any]) -> str:
    schedule = config.get("schedule")
    return str(schedule.get("noise", "")) if isinstance(schedule, dict) else ""


def _id(directory: Path, manifest: RunManifest, first_start: str) -> str:
    """Return a name of the run that stays when it is continued or its directory is moved."""
    known = "\n".join((manifest.study, manifest.run_name, manifest.config_hash, first_start))
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{directory.resolve().parent.name}-{directory.name}").strip("-")[:80]
    return f"{words}-{hashlib.sha256(known.encode()).hexdigest()[:10]}"
