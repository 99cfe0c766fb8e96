"""Test what submitting to a study notes, locks and finds again, with commands that only pretend to be Slurm's."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flash_grpo import jobs
from flash_grpo.cluster import limits, orphans, sending, study_lock, submission
from flash_grpo.cluster.board import Board
from flash_grpo.cluster.deciding_job import deciding_job
from flash_grpo.cluster.limits import Limit, refuse_too_long_a_run, room, site_limits
from flash_grpo.cluster.look import look
from flash_grpo.cluster.run_state import run_states
from flash_grpo.cluster.slurm import Answer, JobStart, NoSlurmError, Queued
from flash_grpo.cluster.study_lock import LockedError, StudyLock, unsent
from flash_grpo.cluster.submission import RefusedError
from flash_grpo.records.submissions import (
    Intended,
    JobRequest,
    SubmittedRun,
    append_submitted,
    read_intended,
    read_submitted,
    write_intended,
)

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from flash_grpo.cluster.study_lock import StudyLock
lock = StudyLock(Path(sys.argv[1]))
lock.note_unsent(sys.argv[2:])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """`pretend(squeue="...")` puts commands on the PATH that print these texts and write how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(**texts: str) -> None:
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text)
            (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.called\ncat {folder}/{name}.txt\n')
            (folder / name).chmod(0o755)

    return put


def submitted(run: str, job: str, **more) -> SubmittedRun:
    return SubmittedRun(**{"run": run, "job_id": job, "folder": f"/x/{job}", "submitted": 1e9, "ranks": 1, **more})


# -- the lock ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path):
    """`held("run1", "run2")` lets another process hold the lock of the study, with runs that wait for room."""
    processes = []

    def hold(*names: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, tmp_path / ".submitit", *names]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.wait()


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path, held):
    holder = held()
    with pytest.raises(LockedError, match=f"process {holder.pid} on {os.uname().nodename}, since .*delete .*/lock"):
        StudyLock(tmp_path / ".submitit", patience=0.3)
    holder.kill()
    StudyLock(tmp_path / ".submitit", patience=5).close()


def test_runs_that_a_launcher_has_yet_to_submit_are_shown_as_long_as_it_lives(tmp_path, held):
    holder = held("run1", "run2")
    assert unsent(tmp_path / ".submitit")[0] == ["run1", "run2"]
    states = {run.run: (run.state, run.why) for run in look(tmp_path).runs}
    assert states["run2"][0] == "waiting" and f"process {holder.pid} on" in states["run2"][1]
    began = time.monotonic()
    with pytest.raises(LockedError, match="still has runs to submit, as room appears"):
        StudyLock(tmp_path / ".submitit")
    assert time.monotonic() - began < study_lock.PATIENCE_S / 2
    holder.kill()
    holder.wait()
    (first, _) = look(tmp_path).runs
    assert (first.state, first.why) == ("unknown", "was never submitted; give the sweep's command again")


def test_a_resubmission_waits_for_nobody_in_vain(tmp_path, held, monkeypatch, capsys):
    monkeypatch.setattr(study_lock, "PATIENCE_S", 0.3)
    holder = held("run1")
    append_submitted(tmp_path / ".submitit", [submitted("run0", "7")])
    with pytest.raises(SystemExit):
        jobs.main([str(tmp_path), "--resubmit", "failed"])
    assert f"process {holder.pid} on" in capsys.readouterr().err


# -- what a dead launcher left -----------------------------------------------------------------------------------------


@pytest.fixture
def cut_short(tmp_path) -> Path:
    """A study whose launcher has died an hour ago, between sbatch and the record of two runs."""
    folder = tmp_path / "study/.submitit"
    folder.mkdir(parents=True)
    runs = [submitted(run, "", folder="", point=f"{folder}/points/{run}.pkl") for run in ("run0", "run1")]
    request = JobRequest(folder=f"{folder}/%j", python="python", parameters={})
    write_intended(folder, Intended(time=time.time() - 3600, request=request, runs=runs))
    return folder.parent


def minutes_ago(minutes: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - 60 * minutes))


@pytest.mark.parametrize("where", ["squeue", "sacct"])
def test_jobs_of_a_submission_that_was_cut_short_are_recorded_with_their_files(cut_short, pretend, where):
    script = f"{cut_short}/.submitit/.submission_file_1.sh"
    lines = {
        "squeue": f"12|{minutes_ago(60)}|{script}|\n12|{minutes_ago(60)}|{script}|\n9|{minutes_ago(60)}|/other/x.sh|\n",
        "sacct": f"12_0|{minutes_ago(60)}|sbatch {script}\n12_1|{minutes_ago(60)}|sbatch {script}\n9|{minutes_ago(1)}|x\n",
    }
    pretend(**{name: lines[name] if name == where else "" for name in lines})
    orphans.adopt_if_free(cut_short)
    found = read_submitted(cut_short)
    assert {run: [job.job_id for job in of_run] for run, of_run in found.items()} == {
        "run0": ["12_0"],
        "run1": ["12_1"],
    }
    assert found["run1"][0].folder == f"{cut_short}/.submitit/12_1"
    assert (cut_short / ".submitit/12_1/12_1_submitted.pkl").exists()
    assert json.loads((cut_short / ".submitit/12.json").read_text())["python"] == "python"
    assert read_intended(cut_short / ".submitit") is None


def test_a_job_older_than_the_submission_is_not_its_own(cut_short, pretend):
    pretend(squeue=f"12|{minutes_ago(90)}|{cut_short}/.submitit/a.sh|\n", sacct="")
    orphans.adopt_if_free(cut_short)
    assert read_submitted(cut_short) == {}


def test_an_sbatch_that_may_be_on_its_way_is_waited_for(cut_short, pretend, monkeypatch):
    pretend(squeue="", sacct="")
    folder = cut_short / ".submitit"
    write_intended(folder, replace(read_intended(folder), time=time.time()))
    assert orphans.adopt(cut_short) is False
    monkeypatch.setattr(orphans, "SBATCH_S", 0.0)
    assert orphans.adopt(cut_short) is True
    assert read_intended(folder) is None


@pytest.mark.parametrize(
    ("mode", "problem"), [(0o600, "is not JSON"), (0o666, "may have been written by somebody else")]
)
def test_the_note_of_a_submission_that_cannot_be_trusted_is_named_and_what_to_do(
    cut_short, pretend, capsys, caplog, mode, problem
):
    pretend(squeue="", sacct="")
    folder = cut_short / ".submitit"
    (folder / "intended.json").write_text("{")
    (folder / "intended.json").chmod(mode)
    append_submitted(folder, [submitted("run0", "7")])
    jobs.main([str(cut_short)])
    (line,) = caplog.messages
    assert f"intended.json: {problem}" in line and "delete the file" in line
    assert "run0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        jobs.main([str(cut_short), "--resubmit", "run0"])
    assert f"intended.json: {problem}" in capsys.readouterr().err


# -- several jobs of one run -------------------------------------------------------------------------------------------


def queued(job: str, state: str) -> Queued:
    return Queued(job=job, state=state, reason="None", restarts=0, begin="2099-01-01T00:00:00", preempted=False)


def ended(job: str, start: str, seconds: int) -> JobStart:
    return JobStart(job=job, state="FAILED", start=start, over=True, seconds=seconds, devices=0)


def test_the_older_job_decides_while_it_runs_and_every_live_one_is_cancelled(tmp_path, monkeypatch):
    (tmp_path / ".submitit").mkdir()
    append_submitted(tmp_path / ".submitit", [submitted("run0", job) for job in ("7", "8")])
    answer = Answer(queued={"7": queued("7", "RUNNING"), "8": queued("8", "PENDING")}, starts={})
    (run,) = run_states(tmp_path, answer)
    assert (run.job.job_id, run.state) == ("7", "starting")
    assert run.why.endswith("; also job 8")
    called = []
    monkeypatch.setattr("flash_grpo.cluster.slurm.output_of", lambda *command: called.append(command) or "")
    (line,) = jobs.cancel([run], None, slurm_answers=True)
    assert called == [("scancel", "--", "7", "8")]
    assert line.startswith("cancelled run0 (jobs 7, 8), which was starting")


def test_a_job_that_was_submitted_after_slurm_was_asked_is_not_lost(tmp_path):
    (tmp_path / ".submitit").mkdir()
    append_submitted(tmp_path / ".submitit", [submitted("run0", "7", submitted=20.0)])
    (run,) = run_states(tmp_path, Answer(queued={}, starts={}, asked=10.0))
    assert (run.state, run.why) == ("waiting", "was submitted just now")
    (run,) = run_states(tmp_path, Answer(queued={}, starts={}, asked=30.0))
    assert run.state == "unknown"


def test_the_job_that_ended_last_decides_even_if_another_was_submitted_after_it():
    older, newer = submitted("run0", "7", submitted=0.0), submitted("run0", "8", submitted=20.0)
    starts = {
        "7": [ended("7", "1970-01-01T00:00:10", 700)],
        "8": [ended("8", "1970-01-01T00:00:30", 600)],
    }
    assert deciding_job(None, [older, newer], Answer(queued={}, starts=starts)) is older
    assert (
        deciding_job(None, [older, newer], Answer(queued={}, starts={"7": [ended("7", "1970-01-01T00:00:05", 9)]}))
        is newer
    )


# -- limits ------------------------------------------------------------------------------------------------------------

PARAMS = {"account": None, "partition": None, "qos": None, "additional_parameters": {}}
CONFIG = (
    "AccountingStorageEnforce = associations,limits\nClusterName             = dev\nMaxArraySize            = 300\n"
)


def test_the_limits_of_the_site_are_read_and_leave_room_for_what_is_not_queued(pretend):
    pretend(scontrol=CONFIG, sacctmgr="", squeue="proj|normal|\nproj|normal|\n")
    assert [str(limit) for limit in site_limits(PARAMS)] == ["MaxArraySize=300 of this cluster"]
    found = [
        Limit(name="MaxArraySize", owner="this cluster", value=300),
        Limit(name="MaxSubmitJobs", owner="account proj", value=400, account="proj"),
        Limit(name="MaxSubmitJobsPerUser", owner="QOS long", value=3, qos="long"),
    ]
    assert room(found[:2]) == (300, found[0])
    assert room([found[1]]) == (398, found[1])
    assert room(found) == (3, found[2])
    assert room([]) == (None, None)


def test_limits_that_slurm_does_not_enforce_are_not_asked_for(pretend, tmp_path):
    pretend(scontrol=CONFIG.replace("associations,limits", "none"), sacctmgr="x")
    assert len(site_limits(PARAMS)) == 1
    assert not (tmp_path / "bin/sacctmgr.called").exists()


def test_a_time_limit_above_maxwall_is_refused(capsys):
    wall = Limit(name="MaxWall", owner="QOS short", value=60)
    refuse_too_long_a_run([wall], 60)
    with pytest.raises(SystemExit):
        refuse_too_long_a_run([wall], 61)
    assert "hydra.launcher.timeout_min=61: QOS short allows 60 (MaxWall)" in capsys.readouterr().err


# -- sending -----------------------------------------------------------------------------------------------------------


class Point:
    def __init__(self, number: int):
        self.name, self.job, self.began = f"run{number}", None, 0.0


class Job:
    def __init__(self, job_id: str):
        self.job_id = job_id


@pytest.fixture
def sender(tmp_path, monkeypatch):
    """Return `sender(points, takes)`: a sender to a Slurm that takes arrays of up to `takes()` jobs, and their sizes."""
    sizes: list[int] = []

    def make(points: list[Point], takes):
        def submit(folder, request, runs):
            if len(runs) > takes():
                raise RefusedError("refused", "AssocGrpSubmitJobsLimit")
            sizes.append(len(runs))
            return [Job(f"{len(sizes)}_{element}") for element in range(len(runs))]

        monkeypatch.setattr(sending, "submit", submit)
        monkeypatch.setattr(sending, "SEND_S", 0.0)
        request = JobRequest(folder="x/%j", python="python", parameters={})
        runs = {point.name: submitted(point.name, "") for point in points}
        lock = StudyLock(tmp_path / ".submitit")
        return sending.Sender(study=tmp_path, lock=lock, request=request, runs=runs, limits=[]), sizes

    return make


def test_a_limit_that_cannot_be_seen_is_found_by_trying(sender, tmp_path):
    points, free = [Point(number) for number in range(20)], [6]
    board = Board(waiting=list(points))
    sends, sizes = sender(points, lambda: free[0])
    sends.begin(board, detach=False)
    assert (sizes, len(board.waiting)) == ([5], 15)
    assert unsent(tmp_path / ".submitit")[0] == [point.name for point in board.waiting]
    free[0] = 0
    sends.send(board)
    assert len(board.waiting) == 15
    free[0] = 20
    while board.waiting:
        sends.send(board)
    assert sum(sizes) == 20
    assert not (tmp_path / ".submitit/unsent.json").exists()


def test_a_sweep_that_nobody_would_feed_is_not_sent_in_parts(sender, capsys):
    points = [Point(number) for number in range(4)]
    sends, sizes = sender(points, lambda: 2)
    with pytest.raises(SystemExit):
        sends.begin(Board(waiting=list(points)), detach=True)
    assert sizes == []
    assert "Slurm refuses this job: refused" in capsys.readouterr().err
    sends.limits = [Limit(name="MaxArraySize", owner="this cluster", value=3)]
    with pytest.raises(SystemExit):
        sends.begin(Board(waiting=list(points)), detach=True)
    assert (
        "4 runs, but MaxArraySize=3 of this cluster leaves room for 3, and with detach=true" in capsys.readouterr().err
    )


# -- resubmitting ------------------------------------------------------------------------------------------------------


def test_a_request_that_is_damaged_is_named(tmp_path, monkeypatch, capsys):
    append = tmp_path / ".submitit"
    append.mkdir()
    append_submitted(append, [submitted("run0", "7_0", point=str(append / "run0.pkl"))])
    (append / "run0.pkl").touch()
    (append / "7.json").write_text('{"folder": "x/%j", "pyth')
    failed = Answer(queued={}, starts={"7_0": [ended("7_0", "2026-01-01T00:00:00", 5)]})
    monkeypatch.setattr("flash_grpo.cluster.slurm.ask_about", lambda study: failed)
    with pytest.raises(SystemExit):
        jobs.main([str(tmp_path), "--resubmit", "failed"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{append}/7.json: is not JSON" in line and "give the sweep's command again" in line


@pytest.mark.parametrize("error", [RefusedError("full", "AssocMaxSubmitJobLimit"), NoSlurmError("Socket timed out")])
def test_a_resubmission_of_two_arrays_says_what_was_submitted_before_it_was_refused(tmp_path, monkeypatch, error):
    for array in ("7", "8"):
        (tmp_path / f"{array}.json").write_text(json.dumps({"folder": "x/%j", "python": "p", "parameters": {}}))
    old = [submitted(run, job, point=str(tmp_path / "7.json")) for run, job in (("run0", "7_0"), ("run1", "8_0"))]

    def submit(folder, request, runs, answers=iter([[Job("9")], error])):  # noqa: B008
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(submission, "submit", submit)
    monkeypatch.setattr(submission, "_placed", lambda runs, done: [replace(runs[0], job_id=done[0].job_id)])
    with pytest.raises(type(error), match="; submitted before that: run0 as job 9; not submitted: run1"):
        submission.resubmit(tmp_path, old)


def test_the_limits_module_counts_only_jobs_of_the_limit_s_account():
    limit = Limit(name="MaxSubmitJobs", owner="account a", value=9, account="a")
    assert limits._counted(limit, [("a", "x"), ("b", "x"), ("a", "y")]) == 2


@pytest.mark.parametrize("content", ["garbage", "", '{"runs": 3}', "[]", '{"runs": [1]}'])
def test_a_damaged_note_of_unsent_runs_is_named_and_hides_no_run(tmp_path, content, caplog):
    (tmp_path / "unsent.json").write_text(content)
    assert unsent(tmp_path) == ([], "")
    assert f"{tmp_path / 'unsent.json'}" in caplog.text
