"""Test `python -m flash_grpo.jobs` without Slurm: on a study's files and on made-up answers of Slurm."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flash_grpo import jobs
from flash_grpo.cluster import slurm, submission
from flash_grpo.cluster.bill import bill_of, write_bills
from flash_grpo.cluster.last_words import last_words
from flash_grpo.cluster.reasons import ENDS
from flash_grpo.cluster.run_state import run_states
from flash_grpo.cluster.slurm import Answer, JobStart, Queued
from flash_grpo.cluster.table import age, hours
from flash_grpo.records.billed import Bill
from flash_grpo.records.files import RecordWriter, read_manifest, read_newest_first, read_records, write_manifest
from flash_grpo.records.schema import Cost, EvalRecord, ProgramStart, RunManifest
from flash_grpo.records.submissions import SubmittedRun, read_submitted


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


JOB = {"job_id": "7_0", "run": "seed0", "ranks": 2, "submitted": 1e9, "point": "p.pkl"}
IDS = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "8"}


def written(study: Path, status: str = "running", reason: str = "", restarts: int = 0, **more) -> Path:
    """Write the directory of a run of job 7_0, with this status in run.json, and return it."""
    run_dir = study / "seed0"
    run_dir.mkdir(parents=True)
    ids = {**IDS, "SLURM_RESTART_COUNT": str(restarts)}
    begun = ProgramStart(time="2026-01-01T00:00:00+0000", iteration=0, slurm=ids)
    about = {"run_name": "seed0", "study": "s", "method": "flash", "model": "tiny", "seed": 0, "world_size": 2}
    about |= {"config": {}, "config_hash": "", "schedule": {}, "schedule_hash": "", "git": None}
    about |= {"packages": {}, "hardware": {}, "status": status, "reason": reason, "starts": [begun]}
    write_manifest(run_dir, RunManifest(**{**about, **more}))
    return run_dir


def submitted(study: Path, *lines: dict) -> None:
    folder = study / ".submitit"
    folder.mkdir(parents=True, exist_ok=True)
    complete = [{**JOB, "folder": str(folder / "7_0"), **line} for line in lines or ({},)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in complete))


def evaluated(run_dir: Path, device_seconds: float, evaluation_seconds: float, server_seconds: float = 0.0) -> None:
    cost = Cost(device_seconds=device_seconds, server_seconds=server_seconds)
    fields = {"iteration": 5, "optimizer_steps": 5, "cost": cost, "evaluation_seconds": evaluation_seconds, "n": 1}
    fields |= {"reward_mean": 1.25, "reward_sem": 0.1, "reward_parts": {}, "prompt_rewards": {"a": 1.25}}
    RecordWriter(run_dir, 0).append(EvalRecord(**fields))


def queued(state: str, reason: str = "None", restarts: int = 0, preempted: bool = False) -> Answer:
    begin = "2026-01-01T12:00:00" if state == "RUNNING" else "N/A"
    waiting = Queued(job="7_0", state=state, reason=reason, restarts=restarts, begin=begin, preempted=preempted)
    earlier = [start("PREEMPTED")] if restarts else []
    return Answer(queued={"7_0": waiting}, starts={"7_0": earlier} if earlier else {})


def start(
    state: str, seconds: int = 100, devices: int = 0, job: str = "7_0", begin: str = "2026-01-01T12:00:00"
) -> JobStart:
    return JobStart(job=job, state=state, start=begin, over=state != "RUNNING", seconds=seconds, devices=devices)


def ended(state: str) -> Answer:
    return Answer(queued={}, starts={"7_0": [start(state)]})


STILL = "; its job is still RUNNING in Slurm, most likely without a process: --cancel it"


@pytest.mark.parametrize(
    ("status", "reason", "answer", "state", "why"),
    [
        (None, "", queued("PENDING", "Resources"), "waiting", "no free nodes"),
        (None, "", queued("PENDING", "JobHeldUser"), "waiting", "held by you: scontrol release 7_0"),
        (None, "", queued("PENDING", "QOSMaxGRESPerUser"), "waiting", "a limit of the QOS (QOSMaxGRESPerUser)"),
        (None, "", queued("PENDING", "SomethingNew"), "waiting", "SomethingNew"),
        ("running", "", queued("PENDING", "BeginTime", 1), "requeued", "was preempted; may start again soon"),
        (None, "", queued("RUNNING"), "starting", "since 12:00:00"),
        ("running", "", queued("RUNNING"), "running", ""),
        ("running", "", queued("RUNNING", restarts=1), "starting", "since 12:00:00"),
        ("running", "", queued("RUNNING", preempted=True), "preempted", "saves, and is queued again"),
        ("failed", "ValueError: no", queued("RUNNING"), "lingering", "ValueError: no" + STILL),  # the job is from 2001
        ("completed", "", queued("RUNNING"), "lingering", "the run has completed" + STILL),
        ("running", "interrupted: saved", queued("RUNNING"), "lingering", "saved" + STILL),
        ("completed", "", queued("COMPLETING"), "ending", ""),
        (None, "", queued("CONFIGURING"), "starting", "CONFIGURING"),
        ("running", "", queued("REQUEUE_HOLD"), "waiting", "REQUEUE_HOLD"),
        ("running", "", queued("SUSPENDED"), "suspended", "SUSPENDED"),
        ("completed", "", ended("COMPLETED"), "complete", ""),
        ("completed", "", ended("FAILED"), "complete", "though Slurm says FAILED"),
        ("running", "", ended("COMPLETED"), "failed", "Slurm says COMPLETED, but the run had not ended"),
        (None, "", ended("COMPLETED"), "failed", "Slurm says COMPLETED, but the run had not ended"),
        ("failed", "ValueError: no", ended("FAILED"), "failed", "ValueError: no"),
        ("running", "", ended("OUT_OF_MEMORY"), "failed", "out of memory: raise hydra.launcher.mem_gb"),
        ("running", "interrupted: saved", ended("FAILED"), "interrupted", "saved"),
        ("running", "interrupted: saved", ended("CANCELLED"), "cancelled", "saved"),
        ("failed", "ValueError: no", Answer(queued={}, starts={}), "failed", "ValueError: no"),
        ("failed", "ValueError: no", ended("RUNNING"), "failed", "ValueError: no"),
        (
            None,
            "",
            ended("RUNNING"),
            "failed",
            "has left the queue; the accounting never heard of its end (sacctmgr show runawayjobs)",
        ),  # the job is from 2001
        (None, "", Answer(queued={}, starts={"7_[0-3]": [start("CANCELLED")]}), "cancelled", "before it started"),
        (None, "", Answer(queued={}, starts={}), "unknown", "Slurm knows no job 7_0 any more"),
        ("completed", "", None, "complete", ""),
        ("running", "", None, "unfinished", "runs still, or was killed"),
        ("running", "interrupted: saved", None, "interrupted", "saved"),
    ],
)
def test_a_state_is_decided_from_run_json_and_slurm_together(tmp_path, status, reason, answer, state, why):
    submitted(tmp_path)
    if status:
        written(tmp_path, status, reason)
    (run,) = run_states(tmp_path, answer)
    assert (run.state, run.why) == (state, why)


def test_a_run_that_has_just_ended_is_ending_and_a_job_without_a_process_can_be_cancelled(
    tmp_path, monkeypatch, capsys
):
    written(tmp_path, "completed")
    monkeypatch.setattr(slurm, "ask_about", lambda study: queued("RUNNING"))
    commands = []
    monkeypatch.setattr(slurm, "output_of", lambda *command: commands.append(command))
    submitted(tmp_path, {"submitted": time.time()})
    jobs.main([str(tmp_path), "--cancel"])
    submitted(tmp_path, {"submitted": time.time() - 121})
    jobs.main([str(tmp_path), "--cancel"])
    assert capsys.readouterr().out.splitlines() == [
        "nothing waits or runs",
        "cancelled seed0 (job 7_0), which was lingering",
    ]
    assert commands == [("scancel", "--", "7_0")]


def test_a_requeued_run_that_is_cancelled_while_it_waits_did_start(tmp_path):
    submitted(tmp_path)
    waiting = JobStart(job="7_0", state="CANCELLED", start="", over=True, seconds=0, devices=0)
    (run,) = run_states(tmp_path, Answer(queued={}, starts={"7_0": [start("NODE_FAIL"), waiting]}))
    assert (run.state, run.why) == ("cancelled", "while it waited to start again")
    (run,) = run_states(tmp_path, Answer(queued={}, starts={"7_0": [waiting]}))
    assert (run.state, run.why) == ("cancelled", "before it started")


def left(state: str, restarts: int = 0, end: str = "2026-01-01T13:00:00") -> dict[str, Queued]:
    times = {"begin": "2026-01-01T12:00:00", "end": end}
    return {"7_0": Queued(job="7_0", state=state, reason="None", restarts=restarts, preempted=False, **times)}


@pytest.mark.parametrize(
    ("status", "reason", "known", "state", "why"),
    [
        ("completed", "", left("COMPLETED"), "complete", ""),
        ("completed", "", left("CANCELLED"), "complete", "though Slurm says CANCELLED"),
        ("completed", "", {}, "complete", ""),
        ("failed", "ValueError: no", {}, "failed", "ValueError: no"),
        ("running", "interrupted: saved", {}, "interrupted", "saved"),
        ("running", "interrupted: saved", left("CANCELLED"), "cancelled", "saved"),
        ("running", "interrupted: saved", left("TIMEOUT", restarts=1), "failed", ENDS["TIMEOUT"]),
        ("running", "", left("OUT_OF_MEMORY"), "failed", "out of memory: raise hydra.launcher.mem_gb"),
        ("running", "", left("FAILED"), "failed", "n1: task 0: Killed"),
        ("running", "", {}, "failed", "n1: task 0: Killed"),
        (None, "", left("CANCELLED", end="2026-01-01T12:00:00"), "cancelled", "before it started"),
        (None, "", left("CANCELLED"), "cancelled", ""),
        (None, "", {}, "unknown", "Slurm has forgotten job 7_0, and it wrote nothing"),
    ],
)
def test_without_accounting_files_and_the_controller_tell_how_a_run_ended(tmp_path, status, reason, known, state, why):
    submitted(tmp_path)
    if status:
        written(tmp_path, status, reason, bill=Bill(device_seconds=3))
        (tmp_path / ".submitit/7_0").mkdir()
        (tmp_path / ".submitit/7_0/7_0_0_log.out").write_text("srun: error: n1: task 0: Killed\n")
    answer = Answer(queued={}, starts={}, left=known, no_accounting="disabled")
    (run,) = run_states(tmp_path, answer)
    assert (run.state, run.why) == (state, why)
    assert write_bills(tmp_path, answer) == []
    assert run.billed_seconds == (3 if status else None)  # as it was when the accounting last answered


def test_without_accounting_a_requeued_run_is_told_by_the_controller(tmp_path):
    submitted(tmp_path)
    answer = replace(queued("PENDING", "BeginTime", 1), starts={}, no_accounting="disabled")
    (run,) = run_states(tmp_path, answer)
    assert (run.state, run.why) == ("requeued", "may start again soon")


def test_the_table_says_that_there_is_no_bill_and_failures_still_end_a_watch(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "failed", "ValueError: no")
    answer = Answer(queued={}, starts={}, no_accounting="Slurm accounting storage is disabled")
    monkeypatch.setattr(slurm, "ask_about", lambda study: answer)
    jobs.main([str(tmp_path)])
    notice, _, line, _ = capsys.readouterr().out.splitlines()
    assert notice.startswith(
        "no bill: Slurm's accounting does not answer (Slurm accounting storage is disabled); a run's"
    )
    assert line.split()[:2] == ["seed0", "failed"]
    assert not jobs.watch(tmp_path, 0.01)


def test_an_earlier_job_s_success_does_not_count_for_a_job_that_wrote_nothing(tmp_path):
    submitted(tmp_path, {}, {"job_id": "9", "submitted": time.time()})
    written(tmp_path, "completed")
    answer = Answer(queued={}, starts={"7_0": [start("COMPLETED")], "9": [start("FAILED", job="9")]})
    (run,) = run_states(tmp_path, answer)
    assert run.state == "failed"


def test_an_earlier_start_s_message_does_not_count_for_a_start_that_wrote_nothing(tmp_path):
    submitted(tmp_path)
    written(tmp_path, "running", "interrupted: saved")
    again = start("FAILED", begin="2026-01-01T13:00:00")
    (run,) = run_states(tmp_path, Answer(queued={}, starts={"7_0": [start("REQUEUED"), again]}))
    assert (run.state, run.why) == ("failed", "ended without a word")


def test_slurm_s_message_is_preferred_to_that_of_a_rank_that_only_lost_its_peer(tmp_path):
    submitted(tmp_path)
    lost = "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5 (rank 0 of 2)"
    written(tmp_path, "failed", lost)
    folder = tmp_path / ".submitit/7_0"
    folder.mkdir()
    trace = ("Traceback (most recent call last):", '  File "x.py", line 1, in <module>', lost)
    log = [*(f"[rank0]: {line}" for line in trace), "srun: error: node01: task 1: Killed"]
    (folder / "7_0_0_log.out").write_text("\n".join(log))
    (run,) = run_states(tmp_path, ended("FAILED"))
    assert (run.state, run.why) == ("failed", "node01: task 1: Killed")


def test_times_are_shown_in_the_reader_s_zone(tmp_path, monkeypatch):
    submitted(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    (run,) = run_states(tmp_path, queued("RUNNING"))
    assert (run.state, run.why) == ("starting", "since 21:00:00")


def test_an_older_job_with_the_same_number_is_ignored(tmp_path, monkeypatch):
    submitted(tmp_path, {"submitted": slurm.seconds_since_1970("2026-01-01T11:59:00")})
    old = start("COMPLETED", begin="2020-01-01T12:00:00")
    monkeypatch.setattr(slurm, "_queue", lambda arrays: {})
    monkeypatch.setattr(slurm, "_accounting", lambda arrays: {"7_0": [old, start("FAILED")]})
    assert slurm.ask_about(tmp_path).starts == {"7_0": [start("FAILED")]}


def test_watching_goes_on_while_the_controller_does_not_answer(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "completed")
    answers = iter([queued("RUNNING"), slurm.NoSlurmError("Socket timed out"), ended("COMPLETED")])

    def ask_about(study):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(slurm, "ask_about", ask_about)
    assert jobs.watch(tmp_path, 0.01)
    assert next(answers, None) is None


def test_runs_can_be_cancelled_while_the_accounting_does_not_answer(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "running")
    commands = []

    def unanswered(study):
        raise slurm.NoSlurmError("sacct gives no answer in 60 s")

    monkeypatch.setattr(slurm, "ask_about", unanswered)
    monkeypatch.setattr(slurm, "output_of", lambda *command: commands.append(command))
    monkeypatch.setattr(jobs.shutil, "which", lambda name: name)
    jobs.main([str(tmp_path), "--cancel"])
    assert commands == [("scancel", "--", "7_0")]
    assert capsys.readouterr().out.strip() == "cancelled seed0 (job 7_0)"


@pytest.mark.parametrize(
    ("answer", "status", "ends"),
    [
        (queued("RUNNING"), "running", ", which was running: it saves and ends"),
        (queued("RUNNING"), None, ", which was starting: it ends before it does anything new"),
        (queued("PENDING"), None, ", which was waiting"),
    ],
)
def test_what_cancelling_does_to_a_run_is_said_by_its_state(tmp_path, monkeypatch, capsys, answer, status, ends):
    submitted(tmp_path)
    if status:
        written(tmp_path, status)
    monkeypatch.setattr(slurm, "ask_about", lambda study: answer)
    monkeypatch.setattr(slurm, "output_of", lambda *command: "")
    jobs.main([str(tmp_path), "--cancel"])
    assert capsys.readouterr().out.strip() == f"cancelled seed0 (job 7_0){ends}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (slurm.NoSlurmError("Unable to contact"), "error: Slurm could not be asked (Unable to contact)"),
        (submission.RefusedError("Invalid qos"), "error: Slurm refuses this job: Invalid qos"),
    ],
)
def test_a_controller_that_does_not_answer_has_refused_nothing(tmp_path, monkeypatch, capsys, error, message):
    submitted(tmp_path)
    written(tmp_path, "failed", "ValueError: no")
    monkeypatch.setattr(slurm, "ask_about", lambda study: ended("FAILED"))

    def resubmit(folder, runs):
        raise error

    monkeypatch.setattr(submission, "resubmit", resubmit)
    with pytest.raises(SystemExit):
        jobs.main([str(tmp_path), "--resubmit", "failed"])
    assert capsys.readouterr().err.strip() == message


def test_an_error_of_slurm_is_printed_to_its_end(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "failed", "ValueError: no")

    def unanswered(study):
        raise slurm.NoSlurmError("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")

    monkeypatch.setattr(slurm, "ask_about", unanswered)
    with pytest.raises(SystemExit):
        jobs.main([str(tmp_path), "--resubmit", "failed"])
    whole = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    assert capsys.readouterr().err.strip() == f"error: Slurm could not be asked ({whole})"


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path):
    submitted(tmp_path)
    with open(tmp_path / ".submitit/jobs.jsonl", "a") as file:
        file.write('{"run": "seed1", "job_')
    assert list(read_submitted(tmp_path)) == ["seed0"]


def test_on_a_full_disk_the_table_is_shown_and_no_bill_is_written(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "completed")
    monkeypatch.setattr(slurm, "ask_about", lambda study: ended("COMPLETED"))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    jobs.main([str(tmp_path)])
    assert "complete" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "seed0").iterdir()] == ["run.json"]


def test_a_damaged_checkpoint_that_did_not_stop_the_run_is_said(tmp_path):
    submitted(tmp_path)
    begun = ProgramStart(time="2026-01-01T00:00:00+0000", slurm=IDS, set_aside=["000014+001: a/state.pt: its checksum"])
    written(tmp_path, "completed", starts=[begun])
    (run,) = run_states(tmp_path, ended("COMPLETED"))
    assert (run.state, run.why) == ("complete", "its checkpoint 000014+001 was damaged: went on from an older one")


def test_a_run_whose_log_is_on_a_full_disk_is_said_to_have_had_one(tmp_path, monkeypatch):
    submitted(tmp_path)
    full = SimpleNamespace(f_bavail=0, f_blocks=2000, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr("os.statvfs", lambda path: full)
    (run,) = run_states(tmp_path, ended("FAILED"))
    said = f"ended without a word; {tmp_path}/.submitit/7_0: no space left (0 B of 8.19 MB are free); make room"
    assert run.state == "failed" and run.why.startswith(said)


def test_failed_runs_are_submitted_again_beside_others_that_failed_without_slurm(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "failed", "ValueError: no")
    shutil.copytree(tmp_path / "seed0", tmp_path / "alone")
    monkeypatch.setattr(slurm, "ask_about", lambda study: ended("FAILED"))
    monkeypatch.setattr(submission, "resubmit", lambda folder, lines: [replace(line, job_id="9") for line in lines])
    jobs.main([str(tmp_path), "--resubmit", "failed"])
    assert capsys.readouterr().out == "submitted seed0 again as job 9\n"


def test_a_run_that_a_guard_ended_is_complete_and_says_why(tmp_path, monkeypatch, capsys):
    reason = "stopped by stop_when.diversity_below at iteration 40: diversity 0.041 is below 0.5 of the base's 0.103"
    submitted(tmp_path)
    written(tmp_path, "completed", reason)
    for answer in (ended("COMPLETED"), replace(ended("COMPLETED"), no_accounting="is down")):
        (run,) = run_states(tmp_path, answer)
        assert (run.state, run.why) == ("complete", reason)
    monkeypatch.setattr(slurm, "ask_about", lambda study: ended("COMPLETED"))
    with pytest.raises(SystemExit, match="2"):
        jobs.main([str(tmp_path), "--resubmit", "seed0"])
    said = (
        f"seed0 is complete; {reason}; to go on without that guard, or with a larger budget, give the sweep's command"
    )
    assert said in capsys.readouterr().err


def test_a_server_s_device_seconds_are_not_part_of_the_job_s_bill(tmp_path):
    submitted(tmp_path)
    run_dir = written(tmp_path, "completed")
    evaluated(run_dir, 150.0, 20.0, server_seconds=90.0)
    bill = bill_of(run_dir, read_manifest(run_dir), [SubmittedRun(**JOB, folder="")], ended("COMPLETED"))
    assert (bill.device_seconds, bill.useful_device_seconds, bill.lost_device_seconds) == (200, 80.0, 120.0)


def test_a_run_that_was_finished_without_slurm_after_its_job_failed_is_complete(tmp_path):
    submitted(tmp_path)
    later = ProgramStart(time="2026-01-02T00:00:00+0000", iteration=5)
    written(tmp_path, "completed", starts=[later])
    (run,) = run_states(tmp_path, ended("FAILED"))
    assert run.state == "complete"


def test_the_bill_sums_seconds_times_devices_over_every_start_of_every_job(tmp_path):
    run_dir = written(tmp_path, "completed")
    evaluated(run_dir, 500.0, 100.0)
    first = SubmittedRun(**JOB, folder="")
    of_array = [start("PREEMPTED", 100, devices=8), start("FAILED", 10, begin="2026-01-01T13:00:00")]
    starts = {"7_0": of_array, "9": [start("COMPLETED", 50, job="9", begin="2026-01-01T14:00:00")]}
    bill = bill_of(
        run_dir, read_manifest(run_dir), [first, replace(first, job_id="9")], Answer(queued={}, starts=starts)
    )
    assert [start.devices for start in bill.starts] == [8, 2, 2]  # without GPUs its ranks
    assert bill.device_seconds == 100 * 8 + 10 * 2 + 50 * 2
    assert bill.useful_device_seconds == 600.0
    assert bill.lost_device_seconds == 320.0


def test_a_bill_is_written_only_when_no_job_of_the_run_waits_or_runs_and_all_have_ended(tmp_path):
    submitted(tmp_path)
    run_dir = written(tmp_path)
    write_bills(tmp_path, queued("RUNNING"))
    assert write_bills(tmp_path, ended("RUNNING")) == ["seed0"]
    assert read_manifest(run_dir).bill is None
    assert write_bills(tmp_path, ended("FAILED")) == []
    assert read_manifest(run_dir).bill.device_seconds == 200


def test_no_bill_is_written_to_a_run_that_went_on_without_slurm(tmp_path):
    submitted(tmp_path)
    run_dir = written(tmp_path, starts=[ProgramStart(time="2026-01-02T00:00:00+0000", iteration=5)])
    write_bills(tmp_path, ended("FAILED"))
    assert read_manifest(run_dir).bill is None


def test_a_bill_keeps_what_the_accounting_has_forgotten(tmp_path):
    submitted(tmp_path)
    run_dir = written(tmp_path)
    write_bills(tmp_path, ended("PREEMPTED"))
    later = start("COMPLETED", 50, begin="2026-01-02T12:00:00")
    write_bills(tmp_path, Answer(queued={}, starts={"7_0": [later]}))
    assert [start.state for start in read_manifest(run_dir).bill.starts] == ["PREEMPTED", "COMPLETED"]


def test_a_bill_stays_in_run_json_when_the_run_goes_on(train):
    run_dir = train("budget.iterations=1")
    manifest = read_manifest(run_dir)
    manifest.bill = Bill(device_seconds=3)
    write_manifest(run_dir, manifest)
    train("budget.iterations=2")
    assert read_manifest(run_dir).bill == Bill(device_seconds=3)


def test_records_read_backwards_are_the_records(train):
    run_dir = train("budget.iterations=2")
    assert list(read_newest_first(run_dir)) == list(read_records(run_dir))[::-1]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("Traceback (most recent call last):\n  File x\n    y()\nValueError: no\nsubmitit ERROR", "ValueError: no"),
        ("submitit INFO - Starting with a\nKeyError: old\n", "KeyError: old"),
        ("Traceback (most recent call last):\n  f\nOld: x\n- Starting with b\niteration 3\n", "iteration 3"),
        ("iteration 3\nsrun: error: n1: task 0: Killed\n", "n1: task 0: Killed"),
        (" 10%|#\r 20%|##\n", " 20%|##"),
        ("", "ended without a word"),
    ],
)
def test_the_last_words_of_a_log_are_the_most_informative_of_its_last_start(log, words):
    assert last_words([log]) == words


def test_the_table_has_a_line_for_each_run_and_a_total(tmp_path, capsys, monkeypatch):
    submitted(tmp_path)
    evaluated(written(tmp_path, "completed"), 3600.0, 900.0)
    monkeypatch.setattr(slurm, "ask_about", lambda study: Answer(queued={}, starts={"7_0": [start("COMPLETED", 3600)]}))
    jobs.main([str(tmp_path)])
    _, line, total = capsys.readouterr().out.splitlines()
    assert line.split() == ["seed0", "complete", "5", "1.250", "1", "2", "62", "%", "0", "0", "s"]
    assert total == "1 run: 1 complete; 1 device-hours; 2 device-hours billed, 62 % of them useful"


def test_hours_and_ages_are_short():
    assert [hours(seconds) for seconds in (3.6, 3600, 12_345, 100_000 * 3600)] == ["0.001", "1", "3.43", "100000"]
    assert [age(seconds) for seconds in (-0.1, 119, 120, 7200, 172800)] == ["0 s", "119 s", "2 min", "2 h", "2 d"]


def test_without_slurm_the_table_shows_what_the_runs_wrote_and_says_so(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "completed")
    monkeypatch.setenv("PATH", "")
    jobs.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Slurm could not be asked (squeue is not on this machine)")
    assert lines[2].split()[:2] == ["seed0", "complete"]


def test_a_study_that_ran_without_slurm_is_shown_too(tmp_path, capsys):
    written(tmp_path, "failed", "ValueError: no")
    jobs.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["seed0", "failed"]


@pytest.mark.parametrize(
    ("there", "arguments", "message"),
    [
        (None, ["nowhere"], "nowhere: no such directory"),
        (None, ["."], "no run was submitted from it"),
        ("local", [".", "--cancel"], "it ran without Slurm"),
        ("slurm", [".", "--logs", "sed0"], "sed0: no such run was submitted from this study; there are seed0"),
        ("slurm", [".", "--logs", "seed0"], "seed0 has no log yet"),
        ("slurm", [".", "--follow"], "--follow: goes with --logs RUN"),
        ("slurm", [".", "--watch", "--interval", "0"], "--interval 0.0: must be above 0 seconds"),
        ("slurm", [".", "--resubmit", "seed0"], "seed0 is complete"),
        ("no slurm", [".", "--cancel"], "Slurm could not be asked (squeue is not on this machine)"),
    ],
)
def test_arguments_that_cannot_be_followed_are_refused_in_one_line(
    tmp_path, monkeypatch, capsys, there, arguments, message
):
    monkeypatch.chdir(tmp_path)
    if there:
        written(tmp_path, "completed")
    if there in ("slurm", "no slurm"):
        submitted(tmp_path)
        monkeypatch.setenv("PATH", "")
    if there == "slurm":
        monkeypatch.setattr(slurm, "ask_about", lambda study: ended("COMPLETED"))
    with pytest.raises(SystemExit) as left:
        jobs.main(arguments)
    errors = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
    assert sum(line.startswith("error") for line in errors) == 1


def test_the_logs_of_several_ranks_carry_their_number_and_progress_bars_only_their_end(tmp_path, monkeypatch, capsys):
    submitted(tmp_path)
    written(tmp_path, "completed")
    folder = tmp_path / ".submitit/7_0"
    folder.mkdir()
    (folder / "7_0_0_log.out").write_text("1%\r99%\nend\n")
    (folder / "7_0_1_log.out").write_text("other\n")
    monkeypatch.setattr(slurm, "ask_about", lambda study: ended("COMPLETED"))
    jobs.main([str(tmp_path), "--logs", "seed0"])
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["0: 99%", "0: end", "1: other"]
    assert str(folder) in captured.err


def test_the_help_names_every_state():
    command = [sys.executable, "-m", "flash_grpo.jobs", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True).stdout
    from flash_grpo.cluster.run_state import ALIVE, OVER

    assert all(state in help_text for state in (*ALIVE, *OVER) if state != "suspended")
