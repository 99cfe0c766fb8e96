"""What `jobs --resubmit` refuses to run: a pickle, a command or code that somebody else could have written."""

import json
import os
import pickle
from pathlib import Path

import pytest

from flash_grpo import jobs
from flash_grpo.cluster import slurm, submission
from flash_grpo.cluster.ownership import NotOursError, refuse_foreign_files
from flash_grpo.cluster.slurm import Answer, JobStart
from flash_grpo.records.submissions import read_submitted

REQUEST = {"folder": "x/%j", "python": "python", "parameters": {}}


class Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "code_ran"


@pytest.fixture
def study(tmp_path, monkeypatch, canary) -> Path:
    """A study with a failed run, and a Slurm that would unpickle and execute at once whatever is submitted to it."""
    folder = tmp_path / "study/.submitit"
    (folder / "7_0").mkdir(parents=True)
    (folder / "code/abc").mkdir(parents=True)
    (folder / "7.json").write_text(json.dumps(REQUEST))
    for pickled in (folder / "7_0/7_0_submitted.pkl", tmp_path / "outside.pkl"):
        pickled.write_bytes(pickle.dumps(Touch(canary)))
    (folder / "code/abc/train.py").write_text("")
    failed = JobStart(job="7_0", state="FAILED", start="2026-01-01T12:00:00", over=True, seconds=9, devices=0)
    monkeypatch.setattr(slurm, "ask_about", lambda _: Answer(queued={}, starts={"7_0": [failed]}))

    def executed(folder, request, runs):
        for run in runs:
            pickle.loads(Path(run.point).read_bytes())
        raise submission.RefusedError("the canary is dead")

    monkeypatch.setattr(submission, "submit", executed)
    return folder.parent


def _line(study: Path, **more: str) -> None:
    folder = study / ".submitit"
    line = {"run": "seed0", "job_id": "7_0", "folder": str(folder / "7_0"), "submitted": 1e9, "ranks": 1}
    line |= {"point": str(folder / "7_0/7_0_submitted.pkl"), "code": str(folder / "code/abc"), **more}
    (folder / "jobs.jsonl").write_text(json.dumps(line) + "\n")


def _refused(study: Path, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        jobs.main([str(study), "--resubmit", "failed"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_run_of_the_study_s_own_is_submitted_again(study, canary, capsys):
    _line(study)
    assert "Slurm refuses this job: the canary is dead" in _refused(study, capsys)
    assert canary.exists()


@pytest.mark.parametrize("point", ["{tmp}/outside.pkl", "outside.pkl", "{study}/.submitit/../../outside.pkl"])
def test_a_pickle_outside_the_study_is_not_run(point, study, canary, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _line(study, point=point.format(tmp=tmp_path, study=study))
    assert "lies outside" in _refused(study, capsys)
    assert not canary.exists()


def test_a_link_that_leads_out_of_the_study_is_not_followed(study, canary, tmp_path, capsys):
    (study / ".submitit/link.pkl").symlink_to(tmp_path / "outside.pkl")
    (study / ".submitit/folder").symlink_to(tmp_path)
    for link in ("link.pkl", "folder/outside.pkl"):
        _line(study, point=str(study / ".submitit" / link))
        assert "lies outside" in _refused(study, capsys)
    assert not canary.exists()


@pytest.mark.parametrize("loose", ["", "7_0", "7_0/7_0_submitted.pkl", "7.json", "code/abc", "code/abc/train.py"])
@pytest.mark.parametrize("bit", [0o002, 0o020])
def test_what_others_may_write_is_not_run(loose, bit, study, canary, capsys):
    _line(study)
    path = study / ".submitit" / loose
    path.chmod(path.stat().st_mode | bit)
    assert "others may write to it" in (error := _refused(study, capsys)) and "chmod -R go-w" in error
    assert not canary.exists()


def test_what_belongs_to_another_user_is_not_run(study, canary, monkeypatch, capsys):
    _line(study)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(study).st_uid + 1)
    assert "belongs to another user" in _refused(study, capsys)
    assert not canary.exists()


@pytest.mark.parametrize("job_id", ["../../evil_0", "--me"])
def test_a_job_id_that_is_a_path_or_an_option_leads_nowhere(job_id, study, canary, tmp_path, capsys):
    (tmp_path / "evil.json").write_text(json.dumps({**REQUEST, "python": f"touch {canary} #"}))
    _line(study, job_id=job_id)
    with pytest.raises(NotOursError):
        submission.resubmit(study / ".submitit", [read_submitted(study)["seed0"][0]])
    assert not canary.exists()


def test_a_study_reached_through_a_link_is_one_s_own(study, tmp_path):
    (tmp_path / "link").symlink_to(study)
    point = tmp_path / "link/.submitit/7_0/7_0_submitted.pkl"
    refuse_foreign_files(tmp_path / "link/.submitit", [point, study / ".submitit/7.json"])
    with pytest.raises(NotOursError, match="No such file"):
        refuse_foreign_files(study / ".submitit", [study / ".submitit/gone.pkl"])
