"""Test what identifies a run on Slurm: jobs.jsonl, the starts and the bill in run.json, and SLURM_* variables."""

import json
from dataclasses import asdict

import pytest

from flash_grpo.records.billed import Bill, BilledStart
from flash_grpo.records.files import read_manifest
from flash_grpo.records.full_disk import FullDiskError
from flash_grpo.records.schema import ProgramStart
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.records.submissions import SubmittedRun, append_submitted, read_submitted

LINE = {"run": "seed0", "directory": "runs/s/seed0", "overrides": ["seed=0"], "code": "/code"}
LINE |= {"job_id": "7_0", "folder": "/logs/7_0", "submitted": 1e9, "ranks": 2}  # as earlier versions wrote it, no point


def _write_lines(study, *lines):
    (study / ".submitit").mkdir(exist_ok=True)
    (study / ".submitit/jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_submitted_runs_are_read_as_they_were_appended(tmp_path):
    _write_lines(tmp_path)
    first, again = (SubmittedRun(**LINE, point="p.pkl"), SubmittedRun(**{**LINE, "job_id": "9"}, point="p.pkl"))
    append_submitted(tmp_path / ".submitit", [first])
    append_submitted(tmp_path / ".submitit", [again])
    assert read_submitted(tmp_path) == {"seed0": [first, again]}


def test_a_line_without_point_is_read_and_unknown_keys_are_ignored(tmp_path):
    _write_lines(tmp_path, {**LINE, "from_a_later_version": 1})
    assert read_submitted(tmp_path) == {"seed0": [SubmittedRun(**LINE, point="")]}


@pytest.mark.parametrize("name", ["../../evil", "/etc", "..", ".submitit", "", "a\nb", "x" * 300])
def test_a_run_whose_name_leads_out_of_the_study_is_left_out_and_named(tmp_path, caplog, name):
    _write_lines(tmp_path, LINE, {**LINE, "run": name})
    assert list(read_submitted(tmp_path)) == ["seed0"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{tmp_path}/.submitit/jobs.jsonl, line 2: run=") and "\n" not in warning


def test_lines_that_do_not_fit_on_the_disk_are_not_written_at_all(tmp_path, monkeypatch):
    _write_lines(tmp_path, LINE)
    path = tmp_path / ".submitit/jobs.jsonl"
    before, write = path.read_bytes(), open

    class Full:
        def __init__(self, *arguments, **options):
            self.file = write(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", Full)
    with pytest.raises(FullDiskError, match=r"jobs\.jsonl: no space left \("):
        append_submitted(tmp_path / ".submitit", [SubmittedRun(**LINE)])
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_starts_and_bill_of_an_earlier_version_are_read(tmp_path):
    about = {"run_name": "seed0", "study": "s", "method": "flash", "model": "tiny", "seed": 0, "world_size": 2}
    about |= {"config": {}, "config_hash": "", "schedule": {}, "schedule_hash": "", "git": None}
    about |= {"packages": {}, "hardware": {}}
    start = {"time": "2026-01-01T00:00:00+0000", "iteration": 3, "slurm": {"SLURM_JOB_ID": "7"}, "unknown": 1}
    billed = {"job": "7", "state": "COMPLETED", "start": "2026-01-01T00:00:00", "seconds": 5, "devices": 2}
    bill = {"starts": [billed], "device_seconds": 10, "useful_device_seconds": 8.0, "lost_device_seconds": 2.0}
    (tmp_path / "run.json").write_text(json.dumps({**about, "starts": [start], "bill": bill}))
    manifest = read_manifest(tmp_path)
    assert manifest.starts == [ProgramStart(time=start["time"], iteration=3, slurm={"SLURM_JOB_ID": "7"})]
    assert (manifest.starts[0].reached, manifest.starts[0].job.name) == (0, "7")
    assert manifest.bill == Bill(**{**bill, "starts": [BilledStart(**billed)]})
    assert asdict(manifest.bill) == bill


def test_an_element_of_an_array_is_named_by_the_array(monkeypatch):
    for name, value in {"JOB_ID": "8", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "0", "PROCID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    job = SlurmJob.here()
    assert (job.name, job.rank, job.restart_count) == ("7_0", 3, 0)
    assert job.variables == {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert SlurmJob.of(SlurmJob.here().variables).restart_count == 2


def test_outside_slurm_there_is_no_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert SlurmJob.here() is None
