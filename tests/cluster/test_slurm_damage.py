"""Test runs on a real Slurm, tools/dev_cluster, whose files are damaged between two starts, or whose disk is full."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from damage import flipped
from slurm_cluster import MARKS, Study, eventually, what_was_computed

from flash_grpo.records.files import read_manifest
from flash_grpo.run import checkpoint

pytestmark = MARKS
BUDGET = ("budget.iterations=60", "evaluation.every=0.5", "checkpoint.every=5", "seed=2")
RANKS = {1: "hydra.launcher={cpus_per_task:1}", 2: "hydra.launcher={nodes:2,cpus_per_task:1}"}
WAIT_S = 200


def _detached(submit, ranks: int, name: str) -> Study:
    study = submit(*BUDGET, RANKS[ranks], "detach=true", name=name)
    assert study.launcher.wait(5 * WAIT_S) == 0
    return study


def _newest(study: Study, run: str) -> Path:
    directory = study.directory(run)
    return directory / "checkpoints" / checkpoint.names(directory)[0]


def _damage(path: Path, change) -> str:
    """Damage the file and return its checkpoint's name."""
    path.write_bytes(change(path.read_bytes()))
    return path.parent.name


def _requeued_with_a_flipped_bit(study: Study, run: str, rank: int) -> str:
    """Requeue the run and flip a bit of its newest checkpoint while it waits; of a rank's own file if it has one."""
    eventually(lambda: study.iteration(run) >= 12, f"{run} at iteration 12", WAIT_S)
    study.slurm("scancel", "--signal=USR2", study.job(run))
    eventually(lambda: study.state(run) == "requeued", f"{run} requeued", WAIT_S)
    newest = _newest(study, run)
    own = newest / f"rank{rank:03d}.pt"
    return _damage(own if own.exists() else newest / "state.pt", lambda data: flipped(data, len(data) // 2, 4))


def _killed_and_submitted_again_with_half_a_state(study: Study, run: str) -> str:
    eventually(lambda: study.iteration(run) >= 30, f"{run} at iteration 30", WAIT_S)
    study.slurm("scancel", "--signal=KILL", study.job(run) + ".0")
    eventually(lambda: study.state(run) == "failed", f"{run} failed", WAIT_S)
    damaged = _damage(_newest(study, run) / "state.pt", lambda data: data[: len(data) // 2])
    assert f"submitted {run} again" in study.jobs("--resubmit", run)
    return damaged


def test_damaged_checkpoints_cost_a_requeued_and_a_resubmitted_run_nothing_but_time(submit):
    """Flip a bit before a requeue's start, halve a file before a resubmission's, on one rank and on two."""
    wholes = {ranks: _detached(submit, ranks, f"whole{ranks}") for ranks in RANKS}
    for ranks in RANKS:
        study, run = _detached(submit, ranks, f"damaged{ranks}"), f"damaged{ranks}"
        first = _requeued_with_a_flipped_bit(study, run, ranks - 1)
        second = _killed_and_submitted_again_with_half_a_state(study, run)
        eventually(lambda study=study, run=run: study.state(run) == "complete", f"{run} complete", WAIT_S)
        assert f"its checkpoint {first}, {second} was damaged: went on from an older one" in study.line(run)
        eventually(lambda ranks=ranks: wholes[ranks].state(f"whole{ranks}") == "complete", "whole", WAIT_S)
        ours, theirs = study.directory(f"damaged{ranks}"), wholes[ranks].directory(f"whole{ranks}")
        starts = read_manifest(ours).starts
        assert [len(start.set_aside) for start in starts] == [0, 1, 1]
        assert what_was_computed(ours) == what_was_computed(theirs)
        weights = [checkpoint.newest(directory)["parameters"] for directory in (ours, theirs)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
        assert not list(ours.glob("checkpoints/unusable-*"))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """The directory of the run seed2, on a file system of its own of 30 MB."""
    place = tmp_path / "study/seed2"
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30000000", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_is_called_one_in_the_table_and_the_run_goes_on_when_there_is_space(submit, disk, train):
    study = submit(*BUDGET, "detach=true")
    study.until_iteration("seed2", 8)
    with suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    study.until("seed2", "failed")
    assert f"FullDiskError: {disk}" in study.line("seed2") and "no space left (" in study.line("seed2")
    (disk / "filler").unlink()
    study.jobs("--resubmit", "failed")
    study.until("seed2", "complete")
    assert what_was_computed(study.directory("seed2")) == what_was_computed(train(*BUDGET))
