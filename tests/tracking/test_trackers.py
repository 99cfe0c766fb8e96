"""The trackers themselves, offline, each skipped if its package is missing: what they hold equals the records, field by field.

The follower is the program that a user starts, and is killed; the run is this process, and is cut back as after a kill.
"""

import importlib
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tracker_contents
from made_runs import append, as_float32, manifest, records, sheet, wanted

from flash_grpo.records.files import write_manifest
from flash_grpo.records.schema import TIME, ProgramStart
from flash_grpo.run.settings import TRACKERS
from flash_grpo.tracking.points import read_points, read_run

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("WANDB", "MLFLOW", "TRACKIO")


@pytest.fixture(params=TRACKERS)
def tracker(request):
    for package in (request.param, *(["sqlalchemy"] if request.param == "mlflow" else [])):
        pytest.importorskip(package, reason=f"the extra `{request.param}` is not installed")
    return request.param


@pytest.fixture
def run(tmp_path):
    """A run that is alive as long as this process, until `over`."""
    directory = tmp_path / "study" / "flash-seed3"
    made = manifest(directory)
    made.starts = [ProgramStart(time=time.strftime(TIME), host=platform.node(), pid=os.getpid())]
    write_manifest(directory, made)
    return directory


def over(directory, status="completed"):
    made = manifest(directory, status)
    made.starts = [ProgramStart(time=time.strftime(TIME, time.localtime(read_run(directory).began)), host="elsewhere")]
    return made


@pytest.fixture
def follow(tracker, run, tmp_path):
    """`follow()`: starts the program."""
    started = []
    environment = {key: value for key, value in os.environ.items() if not key.startswith(SETTINGS)}
    environment |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "study" / "trackio"), "TZ": "UTC"}

    def start():
        call = [sys.executable, "-m", "flash_grpo.track", str(run.parent), "--to", tracker, "--interval", "0.2"]
        started.append(
            subprocess.Popen([*call, "--patience", "0"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def contents(tracker, run):
    return getattr(tracker_contents, f"of_{tracker}")(run.parent / tracker, read_run(run))


def until(condition, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)


def holds(tracker, run, count):
    """A function that tells whether the tracker holds that many iterations and evaluations; it may be half written."""

    def enough():
        try:
            values, _ = contents(tracker, run)
        except (ValueError, OSError, sqlite3.OperationalError, KeyError):  # it is being made
            return False
        return len([name for (name, _), _ in values if name.endswith(".cost/device_seconds")]) >= count

    return enough


def assert_equal_to_the_records(tracker, run):
    values, pictures = contents(tracker, run)
    expected = wanted(run)
    assert len(values) == len(dict(values)), "something is there twice"
    if tracker == "tensorboard":
        expected = as_float32(expected)
    assert dict(values) == expected
    steps = {name: -1 if tracker == "mlflow" else iteration for name, iteration in (("start", 0), ("end", 8))}
    names = [(name, step) for sheet, step in steps.items() for name in (f"samples/{sheet}", f"samples.{sheet}/00")]
    assert sorted(pictures) == sorted(names)


def test_a_tracker_holds_each_record_once_after_kills_of_follower_and_run(tracker, run, follow):
    saved = append(run, records(4))
    sheet(run, "start", "red")
    first = follow()
    until(holds(tracker, run, 3), first)
    append(run, records(7)[len(records(4)) :])
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = follow()
    until(holds(tracker, run, 6), second)
    append(run, records(9, second=1.5, first=4), length=saved)  # killed, continued: other times
    time.sleep(0.5)
    second.send_signal(signal.SIGKILL)
    second.wait()
    last = follow()
    sheet(run, "end", "blue")
    write_manifest(run, over(run))
    assert last.wait(120) == 0, last.communicate()[1]
    assert_equal_to_the_records(tracker, run)
    again = follow()
    assert again.wait(120) == 0, again.communicate()[1]
    assert_equal_to_the_records(tracker, run)


def test_mlflow_holds_nothing_twice_after_a_kill_between_a_record_and_its_mark(run, monkeypatch):
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow") and importlib.import_module("flash_grpo.tracking.mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    append(run, records(2))
    known, store = read_run(run), run.parent / "mlflow"
    points, spent = read_points(known), [point.spent for point in read_points(known)]
    store.mkdir()
    first = mlflow.Tracker(known, spent, store)
    first.record(points[:1])
    log_batch = first.client.log_batch
    monkeypatch.setattr(
        first.client, "log_batch", lambda id, metrics: metrics[0].key != "position" and log_batch(id, metrics)
    )
    first.record(points[1:2])
    second = mlflow.Tracker(known, spent, store)
    assert second.held == 1
    second.record(points[1:])
    values, _ = contents("mlflow", run)
    assert len(values) == len(dict(values)) and dict(values) == wanted(run)


def test_an_adapter_s_module_is_loaded_by_name_alone(tracker):
    module = importlib.import_module(f"flash_grpo.tracking.{tracker}")
    assert module.Tracker.__init__.__annotations__.keys() >= {"run", "spent", "store"}
