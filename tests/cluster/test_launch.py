"""Test launching on Slurm with commands that only pretend: what is refused, what is submitted, and the waiting for its end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flash_grpo.cluster import slurm, wait
from flash_grpo.cluster.site import COMMANDS, refuse_what_cannot_run
from flash_grpo.cluster.slurm import Answer, JobStart, Queued
from flash_grpo.records.submissions import SubmittedRun, append_submitted, read_submitted

ROOT = Path(__file__).resolve().parents[2]
SAYS = {"sinfo": "echo 'gpu*|10:00'; echo 'long|1-00:00:00'", "sbatch": "echo Submitted batch job 12"}
PARAMS = {"timeout_min": 5, "signal_delay_s": 60, "gpus_per_node": None, "tasks_per_node": 1}
PARAMS |= {"account": None, "partition": None}


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Put commands with Slurm's names first on the PATH. They know no job; the default partition allows ten minutes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (*COMMANDS, "sacctmgr"):
        (folder / name).write_text(f"#!/bin/sh\n{SAYS.get(name, ':')}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timeout_min": 1}, "signal_delay_s=60 leaves nothing of timeout_min=1 to run in"),
        ({"gpus_per_node": 8}, "gpus_per_node=8 but tasks_per_node=1; each rank has one GPU"),
        ({"account": "nobody"}, "hydra.launcher.account=nobody: Slurm's accounting knows no such account of yours"),
        ({"timeout_min": 11}, "hydra.launcher.timeout_min=11: partition gpu allows 10; a run that reaches"),
    ],
)
def test_settings_that_the_site_does_not_allow_are_refused_in_one_line(pretended, capsys, changed, message):
    with pytest.raises(SystemExit) as left:
        refuse_what_cannot_run({**PARAMS, **changed})
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert line.startswith("error: ") and message in line and line.endswith("; nothing was started")


def test_settings_that_the_site_allows_are_not_refused(pretended, capsys):
    refuse_what_cannot_run(PARAMS)
    assert not capsys.readouterr().err


def test_a_sweep_is_submitted_as_one_array_with_its_code_files_and_configuration(pretended, tmp_path, small):
    chosen = [override for override in small if "run_name" not in override]
    (tmp_path / "train.txt").write_text("a red ball moving left\na blue ball moving up\n")
    (tmp_path / "test.txt").write_text("a green ball moving left\n")
    chosen += ["prompts=file", f"prompts.train={tmp_path}/train.txt", f"prompts.test={tmp_path}/test.txt"]
    places = [f"runs_root={tmp_path}", "study=study", "run_name=seed${seed}"]
    command = [sys.executable, ROOT / "train.py", "-m", "slurm=cpu", "hydra.launcher.timeout_min=10", "seed=0,1"]
    done = subprocess.run([*command, "detach=true", *chosen, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "study/.submitit"
    runs = read_submitted(tmp_path / "study")
    assert [[job.job_id for job in jobs] for jobs in runs.values()] == [["12_0"], ["12_1"]]
    (first,) = runs["seed0"]
    assert (first.directory, first.ranks, "seed=0" in first.overrides) == (f"{tmp_path}/study/seed0", 1, True)
    assert (Path(first.code) / "flash_grpo/cluster/node.py").is_file()
    assert Path(first.point).is_file()
    assert {path.name.partition("-")[2] for path in (folder / "files").iterdir()} == {"train.txt", "test.txt"}
    assert {path.name for path in (folder / "config").iterdir()} == {"seed0.yaml", "seed1.yaml"}
    request = json.loads((folder / "12.json").read_text())
    assert list(request) == ["folder", "python", "parameters"]
    assert request["python"].startswith("env --block-signal=USR2 --block-signal=TERM PYTHONPATH=")
    assert "--cpus-per-task=2" in request["parameters"]["slurm_srun_args"]
    assert "submitted 2 runs as 12; python -m flash_grpo.jobs" in done.stdout + done.stderr


def _submitted(root, small):
    chosen = [override for override in small if "run_name" not in override]
    places = [f"runs_root={root}", "study=study", "run_name=seed${seed}", "hydra.launcher.rehearse=null"]
    command = [sys.executable, ROOT / "train.py", "-m", "slurm=cpu", "hydra.launcher.timeout_min=10", "seed=0,1"]
    return subprocess.run([*command, "detach=true", *chosen, *places], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("root", ["{tmp}/file", "{tmp}/file/runs", "{tmp}/link", "/proc/runs", "/dev/null/runs"])
def test_an_unusable_runs_root_is_refused_in_one_line_before_anything_is_queued(pretended, tmp_path, small, root):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere/at/all")
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/queued\n")
    root = root.format(tmp=tmp_path)
    done = _submitted(root, small)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and root in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "file", "link"]


def test_a_full_disk_at_submission_is_called_one(pretended, tmp_path, small):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: needs root")
    try:
        done = _submitted(place, small)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith(f"error: {place}/study/.submitit") and "no space left (" in line
        assert not list(place.rglob("jobs.jsonl"))
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


# -- waiting -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Return `watched(answer)`: what a watch over the run seed0, job 7, reports when Slurm gives that answer."""
    (tmp_path / ".submitit").mkdir()
    job = SubmittedRun(run="seed0", job_id="7", folder=str(tmp_path), submitted=time.time(), ranks=1)
    append_submitted(tmp_path / ".submitit", [job])
    monkeypatch.setattr(wait, "ASK_SLURM_S", 0.0)
    monkeypatch.setattr(wait, "LOOK_AGAIN_S", 0.0)
    watch = wait.Watch(tmp_path)
    result = SimpleNamespace(exists=lambda: False)
    point = SimpleNamespace(name="seed0", job=SimpleNamespace(paths=SimpleNamespace(result_pickle=result)))

    def report(answer):
        monkeypatch.setattr(slurm, "ask_about", answer if callable(answer) else lambda study: answer)
        return [(ended.name, failure) for ended, failure in watch.ended_of([point])]

    return report


START = JobStart(job="7", state="FAILED", start="2099-01-01T00:00:00", over=True, seconds=1, devices=0)
RUNNING = Queued(job="7", state="RUNNING", reason="None", restarts=0, begin=START.start, preempted=False)


def test_a_failure_is_reported_only_when_a_second_look_agrees(watched):
    lost = Answer(queued={}, starts={"7": [START]})
    assert watched(Answer(queued={"7": RUNNING}, starts={})) == []
    assert watched(lost) == []
    assert watched(Answer(queued={"7": RUNNING}, starts={})) == []
    assert watched(lost) == []
    assert watched(lost) == [("seed0", "ended without a word")]


def test_waiting_goes_on_while_slurm_cannot_be_asked(watched, caplog):
    def unanswered(study):
        raise slurm.NoSlurmError("Socket timed out")

    assert watched(unanswered) == []
    assert "Slurm could not be asked (Socket timed out), and is asked again" in caplog.text
