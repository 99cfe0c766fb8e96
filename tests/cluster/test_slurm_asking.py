"""Test what is asked of a real Slurm, tools/dev_cluster, and what its answers are taken for: GPUs, shells, no accounting."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from slurm_cluster import MARKS, eventually
from test_slurm import Sweep, submit

__all__ = ["submit"]  # a fixture
pytestmark = MARKS

OF_A_SHELL = {"SQUEUE_STATES": "PD", "SQUEUE_USERS": "nobody", "SQUEUE_PARTITION": "short", "SQUEUE_FORMAT": "%i"}
OF_A_SHELL |= {"SINFO_PARTITION": "preemptible", "SACCT_FEDERATION": "1", "SLURM_TIME_FORMAT": "relative"}
OF_A_SHELL |= {"SCANCEL_STATE": "PENDING"}
DISABLED = "Slurm accounting storage is disabled"


def table(sweep: Sweep, *arguments: str) -> list[str]:
    """Return the lines that the jobs command prints, also in a shell with OF_A_SHELL."""
    command = [sys.executable, "-m", "flash_grpo.jobs", str(sweep.folder / "study"), *arguments]
    environment = {**sweep.environment, **OF_A_SHELL}
    done = subprocess.run(command, env=environment, cwd="/", check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def line(sweep: Sweep, run: str) -> str:
    return next(" ".join(line.split()) for line in table(sweep) if line.startswith(run))


def age_by_two_minutes(sweep: Sweep, job: str) -> None:
    """Set the times of the job's submission and logs back, instead of waiting."""
    folder = sweep.folder / "study/.submitit"
    lines = [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]
    aged = [{**line, "submitted": line["submitted"] - 121} for line in lines]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in aged))
    for log in (folder / job).glob("*_log.out"):
        os.utime(log, (time.time() - 121,) * 2)


def process_of(title: str) -> psutil.Process:
    """Find the process of that title; another that ends meanwhile does not matter."""
    living = psutil.process_iter(["cmdline"])
    return next(process for process in living if title in " ".join(process.info["cmdline"] or []))


def test_gpus_are_asked_for_by_type_through_either_option(cluster, tmp_path):
    gpus = "gpus_per_node:2,tasks_per_node:2,gpu_type:a100"
    sweeps = {}
    for option in ("gpus_per_node", "gres"):
        (tmp_path / option).mkdir()
        settings = f"hydra.launcher={{{gpus},gpu_option:{option}}}"
        sweeps[option] = Sweep(tmp_path / option, cluster, "steps=1", settings, "hydra.launcher.mem_gb=null")
    for option, sweep in sweeps.items():
        code, output = sweep.end()
        assert code == 0, output
        assert "gres/gpu=2" in sweep.slurm("sacct", "-nXP", "-j", sweep.jobs()[0], "-o", "AllocTRES")
        (script,) = (tmp_path / option / "study/.submitit").glob("*/*.sh")
        asked = {"gpus_per_node": "--gpus-per-node=a100:2", "gres": "--gres=gpu:a100:2"}[option]
        assert f"#SBATCH {asked}\n" in script.read_text()
        assert "--mem" not in script.read_text()


def test_a_job_without_a_process_is_named_and_cancelled_whatever_the_shell_says(submit, cluster, monkeypatch):
    for name, value in OF_A_SHELL.items():
        monkeypatch.setitem(cluster, name, value)
    sweep = submit("seed=0,1", "steps=40")
    sweep.until_step("work0", 1)
    sweep.until_step("work1", 1)
    sweep.environment = {name: value for name, value in cluster.items() if name not in OF_A_SHELL}
    assert line(sweep, "work0").startswith("work0 running")
    raw = sweep.slurm("squeue", "-h", "-j", sweep.jobs()[0], "-O", "JobID:|").strip("|\n")
    process_of(f"slurmstepd: [{raw}.batch]").kill()
    sweep.slurm("scontrol", "requeue", sweep.jobs()[1])
    eventually(lambda: line(sweep, "work1").startswith("work1 requeued"), "requeued")
    assert table(sweep, "--cancel", "work1") == [f"cancelled work1 (job {sweep.jobs()[1]}), which was requeued"]
    eventually(lambda: sweep.read("work0", "complete"), "complete")
    assert line(sweep, "work0").split()[1] == "ending"
    age_by_two_minutes(sweep, sweep.jobs()[0])
    assert "lingering" in line(sweep, "work0")
    assert line(sweep, "work0").endswith(
        "the run has completed; its job is still RUNNING in Slurm, most likely without a process: --cancel it"
    )
    assert table(sweep, "--cancel", "work0") == [f"cancelled work0 (job {sweep.jobs()[0]}), which was lingering"]
    code, output = sweep.end(30)
    assert code == 1
    assert "FAILED  work1: cancelled: while it waited to start again" in output
    assert "1 of 2 runs complete" in output
    assert line(sweep, "work0").endswith("though Slurm says CANCELLED")


def test_without_accounting_failures_and_kills_are_noticed_and_there_is_no_bill(submit, cluster, tmp_path, monkeypatch):
    folder = Path(tmp_path / "bin")
    folder.mkdir()
    for name in ("sacct", "sacctmgr"):
        (folder / name).write_text(f"#!/bin/sh\necho {DISABLED} >&2\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setitem(cluster, "PATH", f"{folder}:{cluster['PATH']}")
    sweep = submit("do=work,raise", "seed=0,1", "steps=30", "hydra.launcher.account=proj")
    sweep.until_step("work0", 1)
    psutil.Process(int(sweep.read("work0", "pids")[0])).parent().kill()
    code, output = sweep.end()
    assert code == 1
    assert f"Slurm's accounting does not answer ({DISABLED}): no bill" in output
    assert "1 of 4 runs complete" in output
    assert "FAILED  raise0: ValueError: no such reward" in output
    assert "FAILED  raise1: ValueError: no such reward" in output
    assert "task 0: Killed" in output
    notice, *lines = table(sweep)
    assert notice.startswith(f"no bill: Slurm's accounting does not answer ({DISABLED})")
    assert [" ".join(line.split()[:2]) for line in lines[1:5]] == [
        "work0 failed",
        "work1 complete",
        "raise0 failed",
        "raise1 failed",
    ]
    assert '"bill": null' in (sweep.folder / "study/work1/run.json").read_text()
