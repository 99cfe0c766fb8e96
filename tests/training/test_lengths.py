"""Two ranks whose rollouts differ in length, plain and with a sharded base: none waits for ever, all leave at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wan_pipeline
from conftest import SMALL

PROGRAM = Path(__file__).with_name("lengths_program.py")
WORK = ("rollouts", "update", "evaluation")
PIECES = ("method.plan.last_step=3", "rollout.batch=2", "training.batch=1", "evaluation.sampler.batch=8")


def _sharded(wan_folder, folder) -> list[str]:
    for name in ("train", "test"):
        (folder / f"{name}.txt").write_text("\n".join(wan_pipeline.SENTENCES))
    return [
        "recipe=wan21_14b",
        f"model.path={wan_folder}",
        *wan_pipeline.SHAPE,
        f"model.embedding_cache={folder / 'text'}",
        "reward=brightness",
        f"prompts.train={folder / 'train.txt'}",
        f"prompts.test={folder / 'test.txt'}",
        "training.optimizer_steps=1",
        "threads=1",
    ]


@pytest.fixture(scope="module", params=["plain", "sharded"])
def ranks(request, tmp_path_factory, wan_folder):
    """What each rank has to tell."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [*SMALL, *PIECES] if request.param == "plain" else [*_sharded(wan_folder, folder), *SMALL, *PIECES]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    command = [*launch, str(PROGRAM), str(folder / "results"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, [torch.load(folder / f"results.{rank}") for rank in (0, 1)]


def test_a_rank_with_fewer_steps_does_not_hang_the_others(ranks):
    kind, (first, last) = ranks
    assert first["goes on"][:2] == last["goes on"][:2]
    assert first["goes on"][0] > 0
    more = first["goes on"][2] - last["goes on"][2]
    assert more == (2 * 6 * 2 if kind == "plain" else 0)  # sharded ranks keep up with each other


@pytest.mark.parametrize("work", WORK)
def test_all_ranks_leave_within_one_velocity(ranks, work):
    kind, (first, last) = ranks
    assert first[work][0] == last[work][0] == 1
    assert last[work][1] == 3
    if kind == "sharded":
        assert first[work][1] == 3
    else:
        assert first[work][2] <= 1
