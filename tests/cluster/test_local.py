"""Test `hydra/launcher=local_bounded` with a toy program: a sweep whose runs sleep, fail, or are stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from submitit.local.local import LocalJob

from flash_grpo.cluster.local import _ended_of

ROOT = Path(__file__).resolve().parents[2]

APP = """
import os, signal, sys, time
from pathlib import Path
import hydra

def save_slowly(*_):
    time.sleep(2)  # submitit alone would kill after one second
    Path("saved-" + NAME).touch()
    os._exit(0)

@hydra.main(config_path=".", config_name="config", version_base="1.3")
def main(cfg):
    global NAME
    NAME = cfg.run_name
    signal.signal(signal.SIGTERM, signal.SIG_IGN if cfg.do == "hang" else save_slowly)
    Path("began-" + NAME).write_text(str(time.time()))
    Path("gpus-" + NAME).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    try:
        time.sleep(60 if cfg.do in ("wait", "hang") else 0.4)
    finally:
        Path("ended-" + NAME).write_text(str(time.time()))
    if cfg.do == "raise":
        raise ValueError("no such reward")
    if cfg.do == "exit":
        sys.exit("the window is wider than the schedule")
    Path("complete-" + NAME).touch()

main()
"""

CONFIG = """
defaults:
  - _self_
  - override hydra/launcher: local_bounded
  - override hydra/job_logging: stdout
runs_root: .
study: study
run_name: ${do}${seed}
seed: 0
do: work
hydra:
  run: {dir: .}
  sweep: {dir: study/.submitit, subdir: .}
  output_subdir: null
  launcher: {max_parallel: 2, rehearse: null}
"""


BROKEN = """
import pathlib
from flash_grpo.cluster import local

def ended_of(points):
    if pathlib.Path("began-wait0").exists() and pathlib.Path("began-wait1").exists():
        raise OSError("Stale file handle")
    return []

local._ended_of = ended_of
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    def start(name: str, *arguments: str, before: str = "") -> subprocess.Popen:
        folder = tmp_path_factory.mktemp(name)
        (folder / "app.py").write_text(before + APP)
        (folder / "config.yaml").write_text(CONFIG)
        command = [sys.executable, "app.py", "-m", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "4,7"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)
        process.folder = folder
        started.append(process)
        return process

    started: list[subprocess.Popen] = []
    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def sweep(app):
    """Go through six runs, two at a time, of which four fail; return the folder, exit code and output."""
    process = app("sweep", "do=work,raise,exit", "seed=0,1")
    output, _ = process.communicate(timeout=60)
    return process.folder, process.returncode, output


def _wait_for(folder: Path, *names: str) -> None:
    deadline = time.monotonic() + 30
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline, f"no {names}, only {sorted(path.name for path in folder.iterdir())}"
        time.sleep(0.05)


def _group_of(process: subprocess.Popen) -> Iterator[psutil.Process]:
    for other in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):  # one of another test ended meanwhile
            if os.getpgid(other.pid) == process.pid:
                yield other


def _ctrl_c(process: subprocess.Popen) -> None:
    """Send SIGINT to all processes in the group, the runs' included, as a terminal does."""
    os.killpg(process.pid, signal.SIGINT)


def test_a_sweep_starts_no_more_runs_at_once_than_allowed(sweep):
    folder, _, _ = sweep
    began = [float(path.read_text()) for path in folder.glob("began-*")]
    ended = [float(path.read_text()) for path in folder.glob("ended-*")]
    at_once = [sum(other <= moment for other in began) - sum(other < moment for other in ended) for moment in began]
    assert len(began) == len(ended) == 6
    assert max(at_once) == 2


def test_each_run_has_one_of_the_gpus(sweep):
    folder, _, _ = sweep
    assert {path.read_text() for path in folder.glob("gpus-*")} == {"4", "7"}


def test_failing_runs_do_not_stop_the_others_and_the_sweep_exits_1(sweep):
    folder, code, _ = sweep
    assert sorted(path.name for path in folder.glob("complete-*")) == ["complete-work0", "complete-work1"]
    assert code == 1


@pytest.mark.parametrize(
    "reason", ["raise0: ValueError: no such reward", "exit1: the window is wider than the schedule"]
)
def test_every_failure_is_listed_at_the_end_with_its_reason_and_log(sweep, reason):
    folder, _, output = sweep
    summary = output[output.index("2 of 6 runs complete") :]
    line = next(line for line in summary.splitlines() if reason in line)
    log = (folder / line.rsplit("log: ")[1]).read_text()
    assert reason.split(": ", 1)[1] in log


def test_a_sweep_writes_nothing_but_its_submitit_folder(sweep):
    folder, _, _ = sweep
    own = {path.name for path in folder.iterdir() if "-" not in path.name}
    assert own == {"app.py", "config.yaml", "study"}
    assert [path.name for path in (folder / "study").iterdir()] == [".submitit"]


def test_ctrl_c_lets_the_runs_save_and_starts_no_more(app):
    process = app("ctrl_c", "do=wait", "seed=0,1,2")
    _wait_for(process.folder, "began-wait0", "began-wait1")
    _ctrl_c(process)
    output, _ = process.communicate(timeout=30)
    assert sorted(path.name for path in process.folder.glob("saved-*")) == ["saved-wait0", "saved-wait1"]
    assert not (process.folder / "began-wait2").exists()
    assert process.returncode == 128 + signal.SIGINT
    assert "the same command continues" in output


def test_a_second_ctrl_c_kills_what_does_not_end(app):
    process = app("kill", "do=hang")
    _wait_for(process.folder, "began-hang0")
    _ctrl_c(process)
    time.sleep(0.5)
    assert process.poll() is None
    _ctrl_c(process)
    process.communicate(timeout=10)
    assert all(other.info["status"] == psutil.STATUS_ZOMBIE for other in _group_of(process))


def test_two_runs_of_one_name_are_refused_before_any_starts(app):
    process = app("twice", "seed=0,1", "run_name=same")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "./study/same" in output
    assert not list(process.folder.glob("began-*"))


def test_a_run_that_cannot_be_started_lets_the_others_save_and_ends_the_sweep(app):
    process = app("full", "seed=0,1", "do=wait,work")
    (process.folder / "study/.submitit").mkdir(parents=True)
    (process.folder / "study/.submitit/wait1").write_text("")  # where submitit would make a directory
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "wait1 cannot be started" in output
    assert (process.folder / "saved-wait0").exists()
    assert not (process.folder / "began-work1").exists()


def test_an_error_of_the_launcher_lets_the_runs_save_and_names_them(app):
    process = app("broken", "do=wait", "seed=0,1,2", before=BROKEN)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the sweep cannot go on: OSError: Stale file handle; its runs save and end: wait0, wait1" in output
    assert sorted(path.name for path in process.folder.glob("saved-*")) == ["saved-wait0", "saved-wait1"]
    assert not (process.folder / "began-wait2").exists()


def test_a_result_that_was_cut_short_fails_its_run_and_no_other(tmp_path, caplog):
    folder = tmp_path / "run"
    result, stdout = tmp_path / "7_0_result.pkl", tmp_path / "7_0_log.out"
    result.write_bytes(b"\x80")
    stdout.write_text("OSError: No space left on device\n")
    job = LocalJob(folder=folder, job_id="7", tasks=[0])
    job.paths.folder.mkdir(exist_ok=True)
    for path, there in ((result, job.paths.result_pickle), (stdout, job.paths.stdout)):
        path.rename(there)
    point = SimpleNamespace(job=job)
    (ended,) = _ended_of([point])
    assert ended == (point, "OSError: No space left on device")
    assert f"{job.paths.result_pickle}: cannot be read" in caplog.text
