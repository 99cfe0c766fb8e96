"""Test `preflight=true` in a real Slurm: one job of two ranks, of a run in whose way several things stand."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from slurm_cluster import MARKS, ROOT

from flash_grpo.algorithm.types import Scores

pytestmark = MARKS
AWAY = "http://127.0.0.1:9"  # the port that discards: nothing listens there
MINE = """
import os
import torch
from flash_grpo.policies.wan import WanPolicy


class Dies(WanPolicy):
    def prefetch(self, texts):
        os._exit(3)


class Drifting(WanPolicy):
    def velocity(self, *inputs):
        return super().velocity(*inputs) + (0.3 if torch.is_grad_enabled() else 0)
"""


def _moody(video_BFHWC, text) -> Scores:
    time.sleep(1)
    total_B = torch.rand(len(text))
    return Scores(total_B=total_B, parts={"mood": total_B})


@pytest.fixture
def no_go(cluster, small, tmp_path):
    """`no_go("seed=1")`: what a preflight on the cluster printed and wrote, which ends in no-go and leaves no run."""
    (tmp_path / "mine.py").write_text(MINE)

    def called(*overrides: str) -> tuple[str, dict]:
        command = [sys.executable, ROOT / "train.py", "preflight=true", "slurm=cpu", "study=study", *small, *overrides]
        environment = {**cluster, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr
        assert {path.name for path in (tmp_path / "runs/study").iterdir()} == {".preflight"}
        return done.stdout, json.loads((tmp_path / "runs/study/.preflight/small/preflight.json").read_text())

    return called


def test_a_job_that_dies_on_its_node_is_a_no_go_that_names_its_log(no_go):
    said, found = no_go("model._target_=mine.Dies")
    (reason,) = found["reasons"]
    assert reason.startswith("the job: job ") and "without a result; its log is " in reason
    assert reason in said and Path(reason.rpartition(" ")[2]).exists()


def test_each_obstacle_is_a_reason_and_the_study_gets_no_run(no_go, serving):
    """A drifting model, a server that is slow and never says the same, one that is away, and no time to save in."""
    url = serving(_moody).url
    shape = ("hydra.launcher.tasks_per_node=2", "hydra.launcher.signal_delay_s=0")
    rewards = ("reward=remote", f"reward.urls=[{url},{AWAY}]", "reward.batch=1")
    said, found = no_go("model._target_=mine.Drifting", *shape, *rewards)
    assert found["ranks"] == 2 and found["collective_gigabytes_per_second"] > 0
    for words in (
        "ratios differ from 1 by",
        f"{url} scores one video differently by",
        f"{AWAY} does not score",
        "servers in reward.urls would keep up",
        "too slow to save: ",
    ):
        assert [reason for reason in found["reasons"] if words in reason], (words, found["reasons"])
        assert words in said
    assert len(found["reasons"]) == 5
