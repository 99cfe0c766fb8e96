"""Start a real Slurm, tools/dev_cluster, for the tests that need one: one for each worker, which each leaves without jobs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from untimed import untimed

from flash_grpo.records.files import read_records

ROOT = Path(__file__).resolve().parents[1]
DEV_CLUSTER = ROOT / "tools" / "dev_cluster"
GRACE = 8  # seconds between a preemption and the kill
WAIT_S = 200  # seconds for a run that takes a few, beside 32 nodes of another worker
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # each has clusters of its own
PORT = int(os.environ.get("DEV_CLUSTER_PORT", "27817")) - 5000 * WORKER  # the first of a few hundred, of each cluster
INSTALLED = Path("/usr/sbin/slurmctld").exists()

MARKS = [  # the `pytestmark` of a file of such tests
    pytest.mark.slurm,
    pytest.mark.skipif(
        not INSTALLED, reason="Slurm is not installed here: tools/dev_cluster install (Debian, as root)"
    ),
]


@contextmanager
def cluster_of(
    nodes: int, port: int, requeue_wait: int = 5, grace: int = GRACE, signal: str = "TERM", **more: object
) -> Iterator[dict[str, str]]:
    """Start a cluster whose preemption sends `signal`, and the kill after `grace` seconds; delete it after the block.

    Yield the environment in which Slurm's commands use it. requeue_wait: seconds; also how long a job may take to start
    before its credential expires. more: settings of tools/dev_cluster, in small letters.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own lies where munge's socket would not be open to all
    settings = {"DIR": folder, "NODES": nodes, "GRACE": grace, "REQUEUE_WAIT": requeue_wait, "PORT": port}
    settings |= {"USER_SIGNAL": int(signal == "USR2"), **{name.upper(): value for name, value in more.items()}}
    environment = {**os.environ, **{f"DEV_CLUSTER_{name}": str(value) for name, value in settings.items()}}
    try:
        subprocess.run([DEV_CLUSTER, "up"], env=environment, check=True)
        yield {**environment, "SLURM_CONF": str(folder / "etc/slurm.conf"), "PYTHONPATH": str(ROOT)}
    finally:
        subprocess.run([DEV_CLUSTER, "purge"], env=environment, check=True)


@pytest.fixture(scope="session")
def slurm_environment() -> Iterator[dict[str, str]]:
    with cluster_of(nodes=6, port=PORT) as environment:
        yield environment


@pytest.fixture
def cluster(slurm_environment) -> Iterator[dict[str, str]]:
    """Yield the environment of the cluster, and end all its jobs after the test."""
    yield slurm_environment
    user = str(os.getuid())
    subprocess.run(["scancel", "--user", user], env=slurm_environment, check=True)
    subprocess.run(["scancel", "--user", user, "--full", "--signal=KILL"], env=slurm_environment, check=False)


def eventually(holds: Callable[[], object], what: str, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not {what} in {seconds} s"
        time.sleep(0.1)


class Study:
    """A submitted sweep of the trainer, and what the jobs command says about it."""

    def __init__(
        self, folder: Path, environment: dict[str, str], *overrides: str, tree: Path = ROOT, name: str = "seed${seed}"
    ) -> None:
        """Submit the sweep and wait until it is queued. tree: the checkout to submit from. name: of the runs."""
        self.folder, self.environment = folder, {**environment, "PYTHONPATH": str(tree)}
        places = ("slurm=cpu", f"runs_root={folder}", "study=study", f"run_name={name}")
        command = [sys.executable, tree / "train.py", "-m", *overrides, *places]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.launcher = subprocess.Popen(command, cwd=folder, env=self.environment, **pipes)
        eventually(lambda: self.launcher.poll() is not None or self.lines(), "submitted")

    def directory(self, run: str) -> Path:
        return self.folder / "study" / run

    def lines(self) -> list[dict]:
        path = self.folder / "study/.submitit/jobs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def job(self, run: str) -> str:
        return next(line["job_id"] for line in reversed(self.lines()) if line["run"] == run)

    def node(self, run: str) -> str:
        return self.slurm("squeue", "-h", "-j", self.job(run), "-o", "%N").strip()

    def restarts(self, run: str) -> int:
        """Ask the controller how often it has requeued the run's job."""
        job = self.slurm("scontrol", "show", "job", self.job(run))
        return int(job.split("Restarts=")[1].split()[0])

    def in_service(self, node: str) -> bool:
        """Ask for a node that is down to be taken back; True once it is. A node that answers may come back alone."""
        if "down" not in self.slurm("sinfo", "-h", "-n", node, "-o", "%T"):
            return True
        command = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(command, env=self.environment, check=False)
        return False

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def jobs(self, *arguments: str) -> str:
        """Call the jobs command from another directory than the sweep's; return what it prints."""
        command = [sys.executable, "-m", "flash_grpo.jobs", self.folder / "study", *arguments]
        done = subprocess.run(command, cwd="/", env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def line(self, run: str) -> str:
        return next(line for line in self.jobs().splitlines() if line.startswith(run))

    def state(self, run: str) -> str:
        return self.line(run).split()[1]

    def until(self, run: str, *states: str) -> None:
        eventually(lambda: self.state(run) in states, f"{run} {' or '.join(states)}", WAIT_S)

    def iteration(self, run: str) -> int:
        return max((record["iteration"] for record in read_records(self.directory(run))), default=-1)

    def until_iteration(self, run: str, iteration: int) -> None:
        eventually(lambda: self.iteration(run) >= iteration, f"{run} at iteration {iteration}", WAIT_S)

    def billed_by_slurm(self, run: str, *options: str) -> int:
        """Ask sacct for the elapsed seconds of the run's jobs, each on one device."""
        jobs = ",".join(line["job_id"] for line in self.lines() if line["run"] == run)
        return sum(map(int, self.slurm("sacct", "-X", "-nP", "-j", jobs, "-o", "ElapsedRaw", *options).split()))


@pytest.fixture
def submit(cluster, tmp_path, small) -> Iterator[Callable[..., Study]]:
    """`submit("seed=0,1")` submits a sweep of small runs in the test's directory."""
    started: list[Study] = []

    def start(*overrides: str, environment: dict[str, str] = cluster, **options: Any) -> Study:
        chosen = [*(override for override in small if "run_name" not in override), *overrides]
        started.append(Study(tmp_path, environment, *chosen, **options))
        return started[-1]

    yield start
    for study in started:
        study.launcher.kill()


def what_was_computed(run_dir: Path) -> list[dict]:
    """Read the run's records and leave out times, which differ between two runs that compute the same."""
    return [untimed(record) for record in read_records(run_dir)]
