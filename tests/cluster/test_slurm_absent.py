"""Test that `slurm=cpu` is refused in one line, and nothing queued, on a machine without Slurm or with only half of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sinfo")
UNREACHED = "slurm_load_partitions: Unable to contact slurm controller (connect failure)"


def _command(folder: Path, name: str, does: str) -> None:
    (folder / name).write_text(f'#!/bin/sh\necho {name} >> "{folder}/called"\n{does}\n')
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("missing", "says", "message"),
    [
        (
            COMMANDS,
            "",
            "sbatch, srun, scontrol, squeue, sinfo: not found on this machine, so there is no Slurm here (slurm=local",
        ),
        (("squeue",), "", "squeue: not found on this machine"),
        ((), UNREACHED, UNREACHED),
        ((), "", "sinfo failed"),
    ],
    ids=["no Slurm", "no squeue", "no controller", "no controller and no word"],
)
def test_without_slurm_a_sweep_is_refused_in_one_line_and_nothing_is_queued(tmp_path, missing, says, message):
    for name in set(COMMANDS) - set(missing):
        _command(tmp_path, name, f"printf '{says}' >&2; exit 1")
    command = [sys.executable, ROOT / "train.py", "-m", "slurm=cpu", "seed=0,1", f"runs_root={tmp_path}/runs"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    called = (tmp_path / "called").read_text().split() if (tmp_path / "called").exists() else []
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 2
    assert message in line
    assert line.endswith("nothing was started")
    assert "sbatch" not in called
    assert not list(tmp_path.rglob("jobs.jsonl"))
