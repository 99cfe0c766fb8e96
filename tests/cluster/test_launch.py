"""Test launching on Slurm with commands that only pretend: what is refused, what is submitted, and the waiting for its end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flash_grpo.cluster import slurm, wait
from flash_grpo.cluster.gpus import gpu_parameters
from flash_grpo.cluster.run_state import run_states
from flash_grpo.cluster.site import COMMANDS, refuse_what_cannot_run
from flash_grpo.cluster.slurm import Answer, JobStart, Queued
from flash_grpo.records.files import write_manifest
from flash_grpo.records.schema import ProgramStart, RunManifest
from flash_grpo.records.submissions import SubmittedRun, append_submitted, read_submitted

ROOT = Path(__file__).resolve().parents[2]
SAYS = {"sinfo": "echo 'gpu*|10:00'; echo 'long|1-00:00:00'", "sbatch": "echo Submitted batch job 12"}
PARAMS = {"timeout_min": 5, "signal_delay_s": 60, "gpus_per_node": None, "tasks_per_node": 1}
PARAMS |= {"account": None, "partition": None, "gres": None, "gpu_type": None, "gpu_option": "gpus_per_node"}


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Put commands with Slurm's names first on the PATH. They know no job; the default partition allows ten minutes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (*COMMANDS, "sacct", "sacctmgr"):
        (folder / name).write_text(f"#!/bin/sh\n{SAYS.get(name, ':')}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timeout_min": 1}, "signal_delay_s=60 leaves nothing of timeout_min=1 to run in"),
        ({"gpus_per_node": 8}, "gpus_per_node=8 but tasks_per_node=1; each rank has one GPU"),
        (
            {"gpus_per_node": "a100:1"},
            "gpus_per_node=a100:1: expected a number of GPUs; their type goes to hydra.launcher.gpu_type=a100",
        ),
        (
            {"gres": "gpu:a100:8"},
            "GPUs are asked for by hydra.launcher.gpus_per_node (how many), gpu_type, and gpu_option=gres for a site that",
        ),
        ({"gpu_option": "gpus"}, "hydra.launcher.gpu_option=gpus: expected one of gpus_per_node, gres"),
        ({"account": "nobody"}, "hydra.launcher.account=nobody: Slurm's accounting knows no such account of yours"),
        ({"timeout_min": 11}, "hydra.launcher.timeout_min=11: partition gpu allows 10; a run that reaches"),
    ],
)
def test_settings_that_the_site_does_not_allow_are_refused_in_one_line(pretended, capsys, changed, message):
    with pytest.raises(SystemExit) as left:
        refuse_what_cannot_run({**PARAMS, **changed})
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert line.startswith("error: ") and message in line and line.endswith("; nothing was started")


def test_settings_that_the_site_allows_are_not_refused(pretended, capsys):
    refuse_what_cannot_run(PARAMS)
    assert not capsys.readouterr().err


def test_a_sweep_is_submitted_as_one_array_with_its_code_files_and_configuration(pretended, tmp_path, small):
    chosen = [override for override in small if "run_name" not in override]
    (tmp_path / "train.txt").write_text("a red ball moving left\na blue ball moving up\n")
    (tmp_path / "test.txt").write_text("a green ball moving left\n")
    chosen += ["prompts=file", f"prompts.train={tmp_path}/train.txt", f"prompts.test={tmp_path}/test.txt"]
    places = [f"runs_root={tmp_path}", "study=study", "run_name=seed${seed}"]
    command = [sys.executable, ROOT / "train.py", "-m", "slurm=cpu", "hydra.launcher.timeout_min=10", "seed=0,1"]
    done = subprocess.run([*command, "detach=true", *chosen, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "study/.submitit"
    runs = read_submitted(tmp_path / "study")
    assert [[job.job_id for job in jobs] for jobs in runs.values()] == [["12_0"], ["12_1"]]
    (first,) = runs["seed0"]
    assert (first.directory, first.ranks, "seed=0" in first.overrides) == (f"{tmp_path}/study/seed0", 1, True)
    assert (Path(first.code) / "flash_grpo/cluster/node.py").is_file()
    assert Path(first.point).is_file()
    assert {path.name.partition("-")[2] for path in (folder / "files").iterdir()} == {"train.txt", "test.txt"}
    assert {path.name for path in (folder / "config").iterdir()} == {"seed0.yaml", "seed1.yaml"}
    request = json.loads((folder / "12.json").read_text())
    assert list(request) == ["folder", "python", "parameters"]
    assert request["python"].startswith("env --block-signal=USR2 --block-signal=TERM PYTHONPATH=")
    assert "--cpus-per-task=2" in request["parameters"]["slurm_srun_args"]
    assert "submitted 2 runs as 12; python -m flash_grpo.jobs" in done.stdout + done.stderr


# -- GPUs and memory, as sites want to be asked -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"gpus_per_node": 8}, {"slurm_gpus_per_node": 8, "slurm_gres": None}),
        ({"gpus_per_node": 8, "gpu_type": "a100"}, {"slurm_gpus_per_node": "a100:8", "slurm_gres": None}),
        ({"gpus_per_node": 8, "gpu_option": "gres"}, {"slurm_gres": "gpu:8"}),
        ({"gpus_per_node": 8, "gpu_type": "a100", "gpu_option": "gres"}, {"slurm_gres": "gpu:a100:8"}),
        ({"gpus_per_node": 8, "gpu_option": "gres", "gres": "nvme:100"}, {"slurm_gres": "gpu:8,nvme:100"}),
        ({"gpu_type": "a100", "gpu_option": "gres"}, {"slurm_gpus_per_node": None, "slurm_gres": None}),  # slurm=cpu
    ],
)
def test_gpus_are_asked_for_by_the_option_and_type_that_the_site_has(settings, asked):
    assert gpu_parameters({**PARAMS, **settings}) == asked


STRICT = """cp "$1" "$(dirname "$0")/../script"
grep -q -- --mem=0 "$1" && echo "sbatch: error: --mem=0 is not allowed here" >&2 && exit 1
grep -q -- --gpus-per-node "$1" && echo "sbatch: error: use --gres" >&2 && exit 1
echo Submitted batch job 12"""


def test_a_site_without_mem_0_that_wants_gres_and_a_type_is_served_by_three_variables(
    pretended, tmp_path, small, monkeypatch
):
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/sh\n{STRICT}\n")
    (tmp_path / "bin/sinfo").write_text("#!/bin/sh\necho 'gpu*|infinite'\n")
    chosen = [override for override in small if "run_name" not in override]
    chosen += [f"runs_root={tmp_path}", "detach=true", "hydra.launcher.rehearse=null"]
    command = [sys.executable, ROOT / "train.py", "-m", "slurm=gpu8", "seed=0", *chosen]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "error: Slurm refuses this job: --mem=0 is not allowed here" in refused.stderr
    for name, value in {"GPU_TYPE": "a100", "GPU_OPTION": "gres", "NODE_MEM_GB": "null"}.items():
        monkeypatch.setenv(f"FLASH_GRPO_{name}", value)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = (tmp_path / "script").read_text()
    assert "#SBATCH --gres=gpu:a100:8\n" in script
    assert "--mem" not in script and "--gpus-per-node" not in script


# -- asking ------------------------------------------------------------------------------------------------------------

OF_A_SHELL = {"SQUEUE_STATES": "PD", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%i", "SACCT_FEDERATION": "1"}
OF_A_SHELL |= {
    "SINFO_PARTITION": "short",
    "SCANCEL_STATE": "PENDING",
    "SCONTROL_ALL": "1",
    "SLURM_TIME_FORMAT": "relative",
}


def test_slurm_s_commands_do_not_see_the_options_of_the_user_s_shell(pretended, tmp_path, monkeypatch):
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\nenv\n")
    for name, value in {**OF_A_SHELL, "SLURM_CONF": "/etc/a.conf", "SLURM_CLUSTERS": "b"}.items():
        monkeypatch.setenv(name, value)
    seen = dict(line.split("=", 1) for line in slurm.output_of("squeue").splitlines() if "=" in line)
    of_slurm = {name: value for name, value in seen.items() if name in OF_A_SHELL or name.startswith("SLURM_")}
    assert of_slurm == {"SLURM_CONF": "/etc/a.conf", "SLURM_CLUSTERS": "b", "SLURM_TIME_FORMAT": "standard"}
    assert seen["TZ"] == "UTC"


def test_only_one_place_calls_slurm_s_commands_and_its_environment_is_used_on_the_nodes_too():
    calls = [
        path.name
        for path in (ROOT / "flash_grpo/cluster").glob("*.py")
        if "subprocess.run(" in path.read_text() and "nvidia-smi" not in path.read_text()
    ]
    assert sorted(calls) == ["node.py", "slurm.py", "snapshot.py"]
    assert "env=slurm.environment()" in (ROOT / "flash_grpo/cluster/node.py").read_text()


@pytest.mark.parametrize("works", [False, True])
def test_where_the_accounting_does_not_answer_squeue_and_the_run_s_files_are_enough(pretended, tmp_path, works):
    state = "RUNNING" if works else "FAILED"
    row = f"7|{state}|None|0|2026-01-01T12:00:00|2026-01-01T13:00:00|N/A|"
    (tmp_path / "bin/squeue").write_text(f"#!/bin/sh\necho '{row}'\n")
    (tmp_path / "bin/sacct").write_text("#!/bin/sh\necho Slurm accounting storage is disabled >&2\nexit 1\n")
    (tmp_path / ".submitit").mkdir()
    job = SubmittedRun(run="seed0", job_id="7", folder=str(tmp_path), submitted=time.time(), ranks=1)
    append_submitted(tmp_path / ".submitit", [job])
    (tmp_path / "7_0_log.out").write_text("srun: error: n1: task 0: Killed\n")
    answer = slurm.ask_about(tmp_path)
    assert (answer.no_accounting, answer.starts) == ("Slurm accounting storage is disabled", {})
    (run,) = run_states(tmp_path, answer)
    assert (run.state, run.billed_seconds) == ("starting" if works else "failed", None)
    assert works or run.why == "n1: task 0: Killed"


def test_a_site_without_accounting_is_accepted_and_told_that_there_is_no_bill(pretended, tmp_path, caplog):
    for name in ("sacct", "sacctmgr"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho Slurm accounting storage is disabled >&2\nexit 1\n")
    refuse_what_cannot_run({**PARAMS, "account": "mine"})
    words = (
        "Slurm's accounting does not answer (Slurm accounting storage is disabled): no bill; a run's own files tell how"
    )
    assert caplog.text.count(words) == 1


def _submitted(root, small):
    chosen = [override for override in small if "run_name" not in override]
    places = [f"runs_root={root}", "study=study", "run_name=seed${seed}", "hydra.launcher.rehearse=null"]
    command = [sys.executable, ROOT / "train.py", "-m", "slurm=cpu", "hydra.launcher.timeout_min=10", "seed=0,1"]
    return subprocess.run([*command, "detach=true", *chosen, *places], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("root", ["{tmp}/file", "{tmp}/file/runs", "{tmp}/link", "/proc/runs", "/dev/null/runs"])
def test_an_unusable_runs_root_is_refused_in_one_line_before_anything_is_queued(pretended, tmp_path, small, root):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere/at/all")
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/queued\n")
    root = root.format(tmp=tmp_path)
    done = _submitted(root, small)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and root in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "file", "link"]


def test_a_full_disk_at_submission_is_called_one(pretended, tmp_path, small):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: needs root")
    try:
        done = _submitted(place, small)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert line.startswith(f"error: {place}/study/.submitit") and "no space left (" in line
        assert not list(place.rglob("jobs.jsonl"))
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


# -- waiting -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Return `watched(answer)`: what a watch over the run seed0, job 7, reports when Slurm gives that answer."""
    (tmp_path / ".submitit").mkdir()
    job = SubmittedRun(run="seed0", job_id="7", folder=str(tmp_path), submitted=time.time(), ranks=1)
    append_submitted(tmp_path / ".submitit", [job])
    monkeypatch.setattr(wait, "ASK_SLURM_S", 0.0)
    monkeypatch.setattr(wait, "LOOK_AGAIN_S", 0.0)
    watch = wait.Watch(tmp_path)
    result = tmp_path / "7_0_result.pkl"
    point = SimpleNamespace(name="seed0", job=SimpleNamespace(paths=SimpleNamespace(result_pickle=result)))

    def report(answer):
        monkeypatch.setattr(slurm, "ask_about", answer if callable(answer) else lambda study: answer)
        return [(ended.name, failure) for ended, failure in watch.ended_of([point])]

    return report


START = JobStart(job="7", state="FAILED", start="2099-01-01T00:00:00", over=True, seconds=1, devices=0)
RUNNING = Queued(job="7", state="RUNNING", reason="None", restarts=0, begin=START.start, preempted=False)


def test_a_failure_is_reported_only_when_a_second_look_agrees(watched):
    lost = Answer(queued={}, starts={"7": [START]})
    assert watched(Answer(queued={"7": RUNNING}, starts={})) == []
    assert watched(lost) == []
    assert watched(Answer(queued={"7": RUNNING}, starts={})) == []
    assert watched(lost) == []
    assert watched(lost) == [("seed0", "ended without a word")]


def test_waiting_goes_on_while_slurm_cannot_be_asked(watched, caplog):
    def unanswered(study):
        raise slurm.NoSlurmError("Socket timed out")

    caplog.set_level("INFO")
    for _ in range(9):
        assert watched(unanswered) == []
    assert watched(Answer(queued={"7": RUNNING}, starts={})) == []
    assert watched(unanswered) == []
    outage = "Slurm could not be asked (Socket timed out), and is asked again until it answers"
    assert caplog.messages == [outage, "Slurm answers again", outage]


def test_a_job_that_outlives_its_run_is_warned_of_once(watched, tmp_path, caplog):
    folder = tmp_path / ".submitit"
    submitted = json.loads((folder / "jobs.jsonl").read_text())
    (folder / "jobs.jsonl").write_text(json.dumps({**submitted, "submitted": 1e9}) + "\n")
    begun = ProgramStart(time="2026-01-01T00:00:00+0000", slurm={"SLURM_JOB_ID": "7"})
    about = dict.fromkeys(("run_name", "study", "method", "model", "config_hash", "schedule_hash"), "")
    about |= {key: {} for key in ("config", "schedule", "packages", "hardware")} | {
        "seed": 0,
        "git": None,
        "world_size": 1,
    }
    (tmp_path / "seed0").mkdir()
    write_manifest(tmp_path / "seed0", RunManifest(**about, status="completed", starts=[begun]))
    (tmp_path / "7_0_result.pkl").touch()
    for _ in range(3):
        assert watched(Answer(queued={"7": RUNNING}, starts={})) == []
    (warning,) = caplog.messages
    assert warning.startswith("seed0: the run has completed; its job is still RUNNING in Slurm")
    assert warning.endswith(f"(python -m flash_grpo.jobs {tmp_path} --cancel seed0)")
