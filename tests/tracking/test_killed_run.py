"""A real run that is killed and continued, followed by a program that is killed too."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tracker_contents
from made_runs import as_float32, wanted

from flash_grpo.records.files import read_records
from flash_grpo.tracking.points import read_points, read_run

ROOT = Path(__file__).resolve().parents[2]
LONG = (
    "schedule.num_steps=5",
    "method.plan.last_step=3",
    "budget.iterations=9",
    "evaluation.every=0.4",
    "checkpoint.every=3",
)


def start(*call: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *call], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def until(condition, process) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
def test_tensorboard_equals_the_records_after_a_kill_of_the_run_and_of_the_follower(tmp_path, small):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    study, run = tmp_path / "study", tmp_path / "study" / "small"
    study.mkdir()
    train = ("train.py", *small, *LONG, f"runs_root={tmp_path}", "study=study", "optim.optimizer.lr=1e-3")
    follow = ("-m", "flash_grpo.track", str(study), "--to", "tensorboard", "--interval", "0.2")
    followers = [start(*follow, "--patience", "300")]
    try:
        first = start(*train)
        until(lambda: run.exists() and sum(1 for _ in read_records(run)) >= 7, first)
        first.kill()
        first.wait()
        tried = [point.spent for point in read_points(read_run(run))]
        until(lambda: holds(study, run) >= len(tried), followers[0])
        followers[0].send_signal(signal.SIGKILL)
        second = start(*train)
        assert second.wait(300) == 0, second.communicate()[1]
        followers.append(start(*follow, "--patience", "0"))
        assert followers[-1].wait(120) == 0, followers[-1].communicate()[1]
    finally:
        for process in [first, *followers]:
            process.kill()
            process.communicate()
    spent = [point.spent for point in read_points(read_run(run))]
    assert spent[: len(tried)] != tried  # it was cut back, and took other times
    values, pictures = tracker_contents.of_tensorboard(study / "tensorboard", read_run(run))
    assert len(values) == len(dict(values)) and dict(values) == as_float32(wanted(run))
    assert {name for name, _ in pictures} >= {"samples/start", "samples/end", "samples.start/00", "samples.end/00"}
    assert len(pictures) == len(set(pictures))


def holds(study: Path, run: Path) -> int:
    values, _ = tracker_contents.of_tensorboard(study / "tensorboard", read_run(run))
    return len([name for (name, _), _ in values if name.endswith(".cost/device_seconds")])
