"""Test `python -m flash_grpo.jobs` on runs of the tiny world in a real Slurm, tools/dev_cluster."""

import shutil
from datetime import datetime
from pathlib import Path

import pytest
from slurm_cluster import MARKS, ROOT, Study, what_was_computed

from flash_grpo.records.files import read_manifest, read_records

pytestmark = MARKS
UNEXPLAINED = 0.15  # of a bill: the ends of the starts, whole seconds, evaluations that share their core more


def start_up_s(study: Study, run: str) -> float:
    """Return the seconds from Slurm's start to the run's own entry in run.json, summed over all starts."""
    begun = study.slurm("sacct", "-X", "--duplicates", "-nP", "-j", study.job(run), "-o", "Start").split()
    ready = [start.time for start in read_manifest(study.directory(run)).starts]
    moments = [
        (datetime.fromisoformat(a).astimezone(), datetime.fromisoformat(b)) for a, b in zip(begun, ready, strict=True)
    ]
    return sum((b - a).total_seconds() for a, b in moments)


def stretch(run_dir: Path) -> float:
    """Return the run's wall seconds for each device-second: above 1 if it had to share its core."""
    iterations = [record for record in read_records(run_dir) if record["kind"] == "iteration"]
    return sum(sum(record["seconds"].values()) for record in iterations) / iterations[-1]["cost"]["device_seconds"]


def test_a_run_is_seen_and_billed_though_its_launcher_was_killed_and_it_was_requeued(submit, monkeypatch):
    study = submit("seed=0", "budget.iterations=300", "evaluation.every=0.2")
    study.launcher.kill()
    assert study.state("seed0") in ("waiting", "starting")
    study.until_iteration("seed0", 150)  # so that the first start is a good part of the bill
    assert study.state("seed0") == "running"
    assert read_manifest(study.directory("seed0")).bill is None  # a run that lives writes its run.json alone
    study.slurm("scancel", "--signal=USR2", study.job("seed0"))
    study.until("seed0", "requeued", "starting")
    watched = study.jobs("--watch", "--interval", "1")
    assert "1 run: 1 complete" in watched
    run_dir, bill = study.directory("seed0"), read_manifest(study.directory("seed0")).bill
    by_slurm, last_start_alone = study.billed_by_slurm("seed0", "--duplicates"), study.billed_by_slurm("seed0")
    assert [start.state for start in bill.starts] == ["REQUEUED", "COMPLETED"]
    assert bill.device_seconds == by_slurm
    assert bill.lost_device_seconds == by_slurm - bill.useful_device_seconds
    expected = start_up_s(study, "seed0") + stretch(run_dir) * bill.useful_device_seconds
    assert by_slurm == pytest.approx(expected, rel=UNEXPLAINED)
    assert last_start_alone != pytest.approx(expected, rel=UNEXPLAINED)
    monkeypatch.setitem(study.environment, "TZ", "Asia/Tokyo")
    study.jobs()
    assert read_manifest(run_dir).bill == bill


def test_a_start_that_dies_before_it_begins_is_failed_and_goes_on_when_it_is_submitted_again(submit, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "flash_grpo/tiny_world/checkpoint", model)
    study = submit("seed=0", "budget.iterations=60", f"model.path={model}", "detach=true")
    study.until_iteration("seed0", 5)
    study.slurm("scancel", "--signal=USR2", study.job("seed0"))
    study.until("seed0", "requeued")
    model.rename(tmp_path / "elsewhere")
    study.until("seed0", "failed")
    assert str(model) in study.line("seed0")
    assert "ConfigError" in read_manifest(study.directory("seed0")).traceback
    (tmp_path / "elsewhere").rename(model)
    study.jobs("--resubmit", "failed")
    study.until("seed0", "complete")
    assert len(read_manifest(study.directory("seed0")).starts) == 3


def test_a_killed_run_fails_is_submitted_again_and_computes_what_an_undisturbed_run_does(submit, train):
    budget = ("budget.iterations=60", "evaluation.every=0.5")
    study = submit("seed=0,1", *budget)
    study.until_iteration("seed0", 12)
    study.slurm("scancel", "--signal=KILL", study.job("seed0") + ".0")
    assert "cancelled seed1" in study.jobs("--cancel", "seed1")
    study.until("seed0", "failed")
    study.until("seed1", "cancelled")
    bills = [read_manifest(study.directory(run)).bill for run in ("seed0", "seed1")]
    assert [bill.starts[0].state for bill in bills] == ["FAILED", "CANCELLED"]
    assert "Killed" in study.line("seed0")
    assert study.jobs("--resubmit", "failed").startswith("submitted seed0 again as job ")
    assert "iteration" in study.jobs("--logs", "seed0", "--follow")
    assert [study.state("seed0"), study.state("seed1")] == ["complete", "cancelled"]
    (first, _, again), own = study.lines(), ("code", "overrides", "point", "ranks")
    assert [again[key] for key in own] == [first[key] for key in own]
    assert what_was_computed(study.directory("seed0")) == what_was_computed(train("seed=0", *budget))
    both = [start.job for start in read_manifest(study.directory("seed0")).bill.starts]
    assert both == [first["job_id"], again["job_id"]]
    assert read_manifest(study.directory("seed0")).bill.device_seconds == study.billed_by_slurm("seed0", "--duplicates")
