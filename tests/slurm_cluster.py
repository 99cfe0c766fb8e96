"""A real Slurm for the tests that need one, slurm/dev_cluster: one for all of them, left empty after each."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEV_CLUSTER = ROOT / "slurm" / "dev_cluster"
GRACE = 8  # seconds between a preemption and the kill
INSTALLED = Path("/usr/sbin/slurmctld").exists()

MARKS = [  # the `pytestmark` of a file of such tests
    pytest.mark.slurm,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(
        not INSTALLED, reason="Slurm is not installed here: slurm/dev_cluster install (Debian, as root)"
    ),
]


@pytest.fixture(scope="session")
def slurm_environment() -> Iterator[dict[str, str]]:
    """Four nodes whose preemption sends SIGTERM; the environment in which every command goes to them."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # pytest's own lies where munge's socket would not be open to all
    port = os.environ.get("DEV_CLUSTER_PORT", "27817")
    settings = {"DIR": folder, "NODES": 4, "GRACE": GRACE, "REQUEUE_WAIT": 5, "PORT": port}
    environment = {**os.environ, **{f"DEV_CLUSTER_{name}": str(value) for name, value in settings.items()}}
    try:
        subprocess.run([DEV_CLUSTER, "up"], env=environment, check=True)
        yield {**environment, "SLURM_CONF": str(folder / "etc/slurm.conf"), "PYTHONPATH": str(ROOT)}
    finally:
        subprocess.run([DEV_CLUSTER, "purge"], env=environment, check=True)


@pytest.fixture
def cluster(slurm_environment) -> Iterator[dict[str, str]]:
    """The environment of the cluster, whose jobs end with the test."""
    yield slurm_environment
    user = str(os.getuid())
    subprocess.run(["scancel", "--user", user], env=slurm_environment, check=True)
    subprocess.run(["scancel", "--user", user, "--full", "--signal=KILL"], env=slurm_environment, check=False)


def eventually(holds: Callable[[], object], what: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not {what} in {seconds} s"
        time.sleep(0.1)
