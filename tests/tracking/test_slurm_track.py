"""Test `track=` beside a sweep on a real Slurm: what the tracker holds equals the records, though a run was requeued."""

import pytest
import tracker_contents
from made_runs import as_float32, wanted
from slurm_cluster import MARKS, WAIT_S

from flash_grpo.records.files import read_manifest
from flash_grpo.tracking.points import read_run

pytestmark = MARKS


def test_a_tracker_beside_a_sweep_holds_each_record_of_a_requeued_run_once(submit):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    budget = ("seed=0,1", "budget.iterations=40", "evaluation.every=0.25", "checkpoint.every=10")
    sweep = submit(*budget, "track=tensorboard")
    sweep.until_iteration("seed0", 5)
    sweep.slurm("scontrol", "requeue", sweep.job("seed0"))
    output, _ = sweep.launcher.communicate(timeout=WAIT_S)
    assert sweep.launcher.returncode == 0, output
    assert "track=tensorboard has stopped" not in output
    assert len(read_manifest(sweep.directory("seed0")).starts) == 2
    for name in ("seed0", "seed1"):
        run = sweep.directory(name)
        values, pictures = tracker_contents.of_tensorboard(sweep.folder / "study/tensorboard", read_run(run))
        assert len(values) == len(dict(values))
        assert dict(values) == as_float32(wanted(run))
        assert {"samples/start", "samples/end"} <= {picture for picture, _ in pictures}
