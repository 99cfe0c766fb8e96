"""Test that `slurm=cpu` is refused in one line, and nothing queued, on a machine without Slurm or with only half of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("sbatch", "srun", "scontrol", "sacct", "squeue", "sinfo")
DISABLED = "Slurm accounting storage is disabled"


def _command(folder: Path, name: str, does: str) -> None:
    (folder / name).write_text(f'#!/bin/sh\necho {name} >> "{folder}/called"\n{does}\n')
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("missing", "says", "message"),
    [
        (
            COMMANDS,
            "",
            "sbatch, srun, scontrol, sacct, squeue, sinfo: not found on this machine, so there is no Slurm here (slurm=local",
        ),
        (("sacct",), "", "sacct: not found on this machine"),
        ((), DISABLED, f"without Slurm's accounting no failure would be noticed ({DISABLED})"),
        ((), "", "without Slurm's accounting no failure would be noticed (sacct failed)"),
    ],
    ids=["no Slurm", "no sacct", "no accounting", "no accounting and no word"],
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
