"""Test `python -m flash_grpo.track` without a tracker: what it refuses, when it ends, and how it goes beside a sweep."""

import fcntl
import logging
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from flash_grpo import track
from flash_grpo.cluster import alive, slurm
from flash_grpo.cluster.follower import followed
from flash_grpo.records.files import read_manifest, write_manifest
from flash_grpo.records.schema import TIME, ProgramStart, RunManifest
from flash_grpo.run.settings import TRACKERS

ROOT = Path(__file__).resolve().parents[2]


def written(study: Path, name: str = "seed0", status: str = "running", pid: int = 1, host: str = "elsewhere") -> Path:
    facts = {"method": "flash", "model": "tiny", "seed": 0, "config": {}, "config_hash": "", "schedule": {}}
    about = {"schedule_hash": "", "git": None, "packages": {}, "hardware": {}, "world_size": 1}
    start = ProgramStart(time=time.strftime(TIME), host=host, pid=pid)
    (study / name).mkdir(parents=True, exist_ok=True)
    manifest = RunManifest(run_name=name, study=study.name, **facts, **about, status=status, starts=[start])
    write_manifest(study / name, manifest)
    return study / name


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as end:
        track.main([str(item) for item in argv])
    message = capsys.readouterr().err
    assert (end.value.code, message.count("\n"), message[:7]) == (2, 1, "error: ")
    return message


def test_bad_input_is_one_line_that_names_the_way_out(tmp_path, capsys):
    run = written(tmp_path / "study")
    assert "no such directory" in refused(capsys, tmp_path / "none", "--to", "wandb")
    assert f"is a run; expected its study, {tmp_path}/study" in refused(capsys, run, "--to", "wandb")
    assert "invalid choice: 'wandbb'" in refused(capsys, tmp_path / "study", "--to", "wandbb")
    assert "--interval 0.0: must be a number of seconds" in refused(capsys, tmp_path, "--to", "wandb", "--interval", 0)
    assert "--patience nan" in refused(capsys, tmp_path, "--to", "wandb", "--patience", "nan")
    assert "did you mean --store" in refused(capsys, tmp_path, "--to", "wandb", "--stroe", "x")


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_package_names_its_extra(tmp_path, capsys, monkeypatch, tracker):
    loaded = [name for name in sys.modules if name.startswith((f"{tracker}.", f"flash_grpo.tracking.{tracker}"))]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, tracker, None)
    message = refused(capsys, tmp_path, "--to", tracker)
    assert message.startswith(f"error: --to {tracker}: {tracker}")
    assert f"pip install -e '.[{tracker}]'" in message


class Nothing:
    """A tracker that keeps nothing."""

    LOOK = "see {store} of {study}"
    ended: list

    def __init__(self, run, spent, store):
        self.held, self.shown, self.name = 0, set(), run.name

    def record(self, points):
        pass

    def end(self, status, why):
        Nothing.ended.append((self.name, status))


@pytest.fixture
def nothing(monkeypatch):
    Nothing.ended = []
    monkeypatch.setattr(track, "adapter", lambda name: SimpleNamespace(Tracker=Nothing, LOOK=Nothing.LOOK))
    return Nothing


def test_a_study_whose_runs_are_over_is_sent_at_once(tmp_path, capsys, nothing):
    done = written(tmp_path / "study", status="completed")
    os.utime(done / "run.json", (0, 0))
    track.main([str(tmp_path / "study"), "--to", "wandb", "--interval", "600"])
    assert nothing.ended == [("seed0", "completed")]
    assert capsys.readouterr().out == f"following {tmp_path}/study; see {tmp_path}/study/wandb of study\n"


def test_it_waits_while_a_run_is_alive_and_for_its_patience_after(tmp_path, nothing, monkeypatch):
    study, looks = tmp_path / "study", []
    written(study, host=platform.node(), pid=os.getpid())

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            written(study, status="completed")
        if len(looks) == 4:
            os.utime(study / "seed0/run.json", (0, 0))

    monkeypatch.setattr(track.time, "sleep", sleep)
    track.main([str(study), "--to", "mlflow"])
    assert (looks, set(nothing.ended)) == ([10.0] * 4, {("seed0", "completed")})


def test_a_failing_tracker_ends_with_one_last_line(tmp_path, capsys, nothing, monkeypatch):
    def record(self, points):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(Nothing, "__init__", record)
    monkeypatch.setattr(Nothing, "__init__", lambda self, run, spent, store: record(self, []))
    written(tmp_path / "study", status="completed")
    with pytest.raises(SystemExit) as end:
        track.main([str(tmp_path / "study"), "--to", "wandb"])
    assert end.value.code == "stopped: wandb: RuntimeError: no network; the same command goes on where it stopped"
    assert "Traceback" in capsys.readouterr().err


def test_two_followers_of_one_study_to_one_tracker_are_refused(tmp_path, capsys, nothing):
    written(tmp_path / "study", status="completed")
    with open(tmp_path / "study/.track-wandb", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process follows it to wandb already" in refused(capsys, tmp_path / "study", "--to", "wandb")
    track.main([str(tmp_path / "study"), "--to", "wandb", "--patience", "0"])


def test_a_study_that_one_may_not_write_to_needs_a_store(tmp_path, capsys, nothing):
    written(tmp_path / "study", status="completed")
    (tmp_path / "file").write_text("")
    assert "as in --store" in refused(capsys, tmp_path / "study", "--to", "wandb", "--store", tmp_path / "file")
    track.main([str(tmp_path / "study"), "--to", "wandb", "--patience", "0", "--store", str(tmp_path / "mine")])
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".track-wandb", "wandb"]
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["seed0"]


# -- which runs are alive ----------------------------------------------------------------------------------------------


def test_a_run_is_alive_as_long_as_its_process(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    here = {"host": platform.node(), "pid": process.pid}
    written(tmp_path, "running", **here)
    written(tmp_path, "complete", status="completed", **here)
    written(tmp_path, "elsewhere", pid=process.pid)
    run = written(tmp_path, "older", **here)  # another process has its number now
    manifest = read_manifest(run)
    manifest.starts = [ProgramStart(time="2020-01-01T00:00:00+0000", **here)]
    write_manifest(run, manifest)
    assert alive.alive_runs(tmp_path) == {"running"}
    process.kill()
    process.wait()
    assert alive.alive_runs(tmp_path) == set()


def test_runs_of_slurm_are_alive_while_it_does_not_answer(tmp_path, monkeypatch):
    def silent(study):
        raise slurm.NoSlurmError("squeue: timeout")

    written(tmp_path, "seed0")
    written(tmp_path, "seed1", status="completed")
    written(tmp_path, "by_hand")
    jobs = [
        f'{{"job_id": "7_{seed}", "run": "seed{seed}", "folder": "f", "submitted": 1, "ranks": 1}}\n' for seed in (0, 1)
    ]
    (tmp_path / ".submitit").mkdir()
    (tmp_path / ".submitit/jobs.jsonl").write_text("".join(jobs))
    monkeypatch.setattr(alive.slurm, "ask_about", silent)
    monkeypatch.setattr(alive.shutil, "which", lambda name: name)
    assert alive.alive_runs(tmp_path) == {"seed0"}
    monkeypatch.setattr(alive.shutil, "which", lambda name: None)  # a copy, on a machine without Slurm
    assert alive.alive_runs(tmp_path) == set()


# -- beside a sweep ----------------------------------------------------------------------------------------------------


def points(study: Path, tracker: str | None):
    return [SimpleNamespace(cfg=OmegaConf.create({"track": tracker}), directory=str(study / "seed0"))]


def test_a_follower_that_fails_is_one_warning_and_the_sweep_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.INFO), followed(points(tmp_path / "study", "nonsense")):
        until = time.monotonic() + 120
        while len(caplog.messages) < 2 and time.monotonic() < until:
            time.sleep(0.1)
    said, warned = caplog.messages
    assert said == f"nonsense follows {tmp_path}/study; log: {tmp_path}/study/.submitit/track-nonsense.log"
    assert warned.startswith("track=nonsense has stopped, the sweep goes on: error: argument --to: invalid choice")
    assert f"python -m flash_grpo.track {tmp_path}/study --to nonsense" in warned


def test_without_track_nothing_is_started_and_with_detach_the_command_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        with followed(points(tmp_path, None)):
            assert not caplog.messages
        with followed(points(tmp_path, "wandb"), detach=True):
            pass
    assert caplog.messages == [f"to follow the sweep: python -m flash_grpo.track {tmp_path} --to wandb"]
    assert not (tmp_path / ".submitit").exists()


def test_a_follower_sends_what_is_there_and_ends_with_its_launcher(tmp_path, caplog):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    study = tmp_path / "study"
    with caplog.at_level(logging.INFO), followed(points(study, "tensorboard")):
        written(study, host=platform.node(), pid=os.getpid())
    assert len(caplog.messages) == 1
    assert list((study / "tensorboard/flash/seed0").glob("*.flash_grpo"))
    assert (study / ".submitit/track-tensorboard.log").read_text().startswith("following ")


def test_track_is_no_part_of_a_run(config):
    from flash_grpo.records import identity
    from flash_grpo.run import settings

    assert not (identity.is_identity("track") or identity.is_in_name("track") or identity.is_in_arm("track"))
    settings.check(config("track=mlflow"))
    with pytest.raises(settings.ConfigError, match="track=wandbb: allowed are null, wandb, tensorboard"):
        settings.check(config("track=wandbb"))
