"""Test submitting to a real Slurm, with runs that need no torch: two launchers, a launcher that dies, the limits of a site."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import MARKS, PORT, ROOT, cluster_of, eventually

from flash_grpo.records.files import read_manifest

pytestmark = MARKS
STUB = ROOT / "tests/stub_sweep.py"
DIES = """#!/bin/sh
# sbatch, whose caller does not live to hear what it says
{sbatch} "$@" && kill -KILL $PPID
"""


class Site:
    """A study of stub runs on a cluster. environment: in which Slurm's commands use the cluster."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.study, self.environment = folder, folder / "study", environment

    def launcher(self, *overrides: str, **variables: str) -> subprocess.Popen:
        command = [sys.executable, STUB, "-m", f"runs_root={self.folder}", *overrides]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env={**self.environment, **variables}, **pipes)

    def launch(self, *overrides: str, **variables: str) -> tuple[int, str]:
        launcher = self.launcher(*overrides, **variables)
        output, _ = launcher.communicate(timeout=120)
        return launcher.returncode, output

    def jobs(self, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "flash_grpo.jobs", self.study, *arguments]
        done = subprocess.run(command, cwd="/", env=self.environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        rows = [line.split() for line in self.jobs()[1].splitlines() if line.startswith("run") and line[3].isdigit()]
        return {name: state for name, state, *_ in rows}

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def queued(self) -> list[str]:
        """List the study's jobs: those of an earlier test may still be ending."""
        rows = [line.split() for line in self.slurm("squeue", "-h", "-r", "-o", "%i %o").splitlines()]
        return [job for job, script in rows if script.startswith(str(self.study))]

    def lines(self) -> list[dict]:
        path = self.study / ".submitit/jobs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def site(cluster, tmp_path) -> Site:
    return Site(tmp_path, cluster)


def test_two_launchers_at_once_queue_each_run_once(site):
    sweep = ("number=range(3)", "seconds=60", "detach=true")
    launchers = [site.launcher(*sweep) for _ in range(2)]
    outputs = {launcher.communicate(timeout=120)[0]: launcher.returncode for launcher in launchers}
    assert sorted(outputs.values()) == [0, 2]
    (refused,) = [output for output, code in outputs.items() if code]
    assert "run0 is job" in refused
    assert len(site.queued()) == len(site.lines()) == 3


def test_jobs_of_a_launcher_that_died_before_it_recorded_them_are_found_and_are_jobs_like_others(site, tmp_path):
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(DIES.format(sbatch=real))
    (tmp_path / "bin/sbatch").chmod(0o755)
    sweep = ("number=range(3)", "detach=true", "+hydra.launcher.additional_parameters.hold=true")
    code, _ = site.launch(*sweep, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert code == -9
    assert (len(site.queued()), site.lines()) == (3, [])

    code, output = site.launch(*sweep)
    assert (code, "run0 is job" in output) == (2, True), output
    assert len(site.queued()) == len(site.lines()) == 3
    assert site.states() == dict.fromkeys(("run0", "run1", "run2"), "waiting")
    assert "cancelled run2" in site.jobs("--cancel", "run2")[1]
    array = site.lines()[0]["job_id"].partition("_")[0]
    site.slurm("scontrol", "release", array)
    ended = {"run0": "complete", "run1": "complete", "run2": "cancelled"}
    eventually(lambda: site.states() == ended, "over", 60)
    # the accounting hears of an end a little later; the next look writes the bill
    eventually(lambda: site.states() and read_manifest(site.study / "run0").bill, "billed", 60)
    seconds = site.slurm("sacct", "-X", "-nP", "-j", f"{array}_0", "-o", "ElapsedRaw").split()
    bill = read_manifest(site.study / "run0").bill
    assert bill and bill.device_seconds == sum(map(int, seconds))


def test_a_job_that_jobs_jsonl_has_lost_is_still_its_run_s(site):
    assert site.launch("number=range(2)", "seconds=300", "detach=true")[0] == 0
    eventually(lambda: set(site.states().values()) == {"running"}, "running", 60)
    jobs = site.study / ".submitit/jobs.jsonl"
    jobs.write_text(jobs.read_text().splitlines(keepends=True)[1])
    assert site.states() == {"run0": "running", "run1": "running"}
    code, output = site.jobs("--resubmit", "run0")
    assert (code, output) == (2, "error: run0 is running: --cancel it first\n")
    assert site.launch("number=0", "detach=true")[0] == 2
    assert "cancelled run0" in site.jobs("--cancel", "run0")[1]
    eventually(lambda: site.states() == {"run0": "cancelled", "run1": "running"}, "cancelled", 60)
    bill = read_manifest(site.study / "run0").bill
    assert bill and bill.device_seconds > 0


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    """Start a cluster that takes arrays of at most three jobs, and whose accounting's limits hold; `limit` sets them."""
    with cluster_of(nodes=1, port=PORT + 1600, max_array=3, enforce="limits,qos") as environment:
        yield environment


@pytest.fixture
def limited(small_site, tmp_path):
    """Yield a site and a function that sets limits of the user's association or of the QOS."""
    site = Site(tmp_path, small_site)

    def limit(kind: str, name: str, value: int) -> None:
        who = "root" if kind == "user" else "normal"
        site.slurm("sacctmgr", "-i", "-Q", "modify", kind, who, "set", f"{name}={value}")

    yield site, limit
    for kind, name in (("user", "maxsubmitjobs"), ("qos", "maxwall")):
        limit(kind, name, -1)
    site.slurm("scancel", "--user", str(os.getuid()))
    eventually(lambda: not site.slurm("squeue", "-h"), "an empty queue", 60)


def test_a_sweep_larger_than_the_site_s_limits_goes_in_parts_and_with_detach_is_refused_by_the_limit_s_name(limited):
    site, limit = limited
    code, output = site.launch("number=range(4)", "detach=true")
    assert (code, "MaxArraySize=3 of this cluster leaves room for 3" in output) == (2, True), output
    limit("user", "maxsubmitjobs", 4)
    code, output = site.launch("number=range(5)", "detach=true")
    assert code == 2
    limit("user", "maxsubmitjobs", 2)
    code, output = site.launch("number=range(3)", "detach=true")
    assert (code, "MaxSubmitJobs=2 of account root leaves room for 2" in output) == (2, True), output
    assert (site.queued(), site.lines()) == ([], [])
    limit("user", "maxsubmitjobs", 4)
    launcher = site.launcher("number=range(6)", "seconds=1")
    eventually(lambda: len(site.lines()) == 4, "four submitted")
    states = site.states()
    assert (len(states), [states["run4"], states["run5"]]) == (6, ["waiting", "waiting"])
    assert f"for room in the queue: process {launcher.pid} on" in site.jobs()[1]
    code, output = site.launch("number=5", "detach=true")
    assert (code, f"process {launcher.pid} on" in output) == (2, True), output
    output, _ = launcher.communicate(timeout=120)
    assert (launcher.returncode, "6 of 6 runs complete" in output) == (0, True), output
    assert len({line["job_id"].partition("_")[0] for line in site.lines()}) == 3


def test_a_limit_of_the_qos_is_named(limited):
    site, limit = limited
    limit("qos", "maxwall", 3)
    code, output = site.launch("number=0", "hydra.launcher.timeout_min=4")
    assert (code, "timeout_min=4: QOS normal allows 3 (MaxWall)" in output) == (2, True), output
    assert site.lines() == []


def test_a_resubmission_that_is_refused_in_the_middle_says_what_was_submitted(limited):
    site, limit = limited
    launcher = site.launcher("number=range(4)", "seconds=300")
    eventually(lambda: len(site.lines()) == 4, "submitted")
    launcher.kill()
    launcher.wait()
    site.jobs("--cancel")
    eventually(lambda: set(site.states().values()) == {"cancelled"}, "cancelled", 60)
    limit("user", "maxsubmitjobs", 3)
    code, output = site.jobs("--resubmit", "cancelled")
    assert code == 2
    assert "AssocMaxSubmitJobLimit" in output and "submitted before that: run0 as job " in output, output
    assert output.endswith("not submitted: run3\n")
    assert [line["run"] for line in site.lines()[4:]] == ["run0", "run1", "run2"]
