"""Test `hydra/launcher=slurm_resumable` in a real Slurm, tools/dev_cluster, with a toy program that counts steps."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil
import pytest
from hydra import compose, initialize_config_dir
from slurm_cluster import DEV_CLUSTER, MARKS, PORT, ROOT, cluster_of, eventually

from flash_grpo.run.compose import CONF

pytestmark = MARKS

APP = """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
import hydra

IDS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")

def say(place, status):
    from flash_grpo.records.files import write_manifest
    from flash_grpo.records.schema import RunManifest
    start = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "slurm": {key: os.environ[key] for key in IDS if key in os.environ}}
    names = {"run_name": place.name, "study": place.parent.name, "method": "toy", "model": "toy"}
    names |= {"config_hash": "", "schedule_hash": ""}
    rest = {"seed": 0, "config": {}, "schedule": {}, "git": None, "packages": {}, "hardware": {}, "world_size": 1}
    write_manifest(place, RunManifest(**names, **rest, format=2, status=status, starts=[start]))

@hydra.main(config_path=".", config_name="config", version_base="1.3")
def main(cfg):
    import flash_grpo
    rank, place = os.environ.get("RANK", "0"), Path(cfg.study) / cfg.run_name
    place.mkdir(exist_ok=True, parents=True)
    if rank == "0":
        say(place, "running")
    note = lambda name, *words: print(*words, file=open(place / f"{name}-{rank}", "a"), flush=True)
    note("starts", flash_grpo.__file__, os.environ.get("WORLD_SIZE"), os.environ.get("MASTER_ADDR"))
    time.sleep(cfg.import_s)
    if cfg.do == "raise" and rank == str(cfg.raising_rank):
        raise ValueError("no such reward")
    child = subprocess.Popen(["sleep", "1000"])
    note("pids", child.pid)
    if cfg.c_s:
        note("c", "begun")
        ctypes.CDLL(None).usleep(int(cfg.c_s * 1e6))  # while it runs, Python handles no signal
        note("c", "returned")
    saved = place / f"saved-{rank}"
    step = int(saved.read_text()) if saved.exists() else 0
    while step < cfg.steps:
        time.sleep(0.2)
        step += 1
        note("steps", step)
        if signal.sigpending() & {signal.SIGTERM, signal.SIGUSR2}:
            saved.write_text(str(step))
            note("child", child.poll())
            sys.exit(130)
    child.kill()
    note("complete")
    if rank == "0":
        say(place, "completed")

main()
"""

CONFIG = """
defaults:
  - _self_
  - override hydra/launcher: slurm_resumable
  - override hydra/job_logging: stdout
runs_root: .
study: study
detach: false
run_name: ${do}${seed}
do: work
seed: 0
steps: 10
import_s: 0
c_s: 0
raising_rank: 0
hydra:
  run: {dir: .}
  sweep: {dir: "${runs_root}/${study}/.submitit", subdir: .}
  output_subdir: null
  launcher: {timeout_min: 5, signal_delay_s: 20, cpus_per_task: 1, mem_gb: 1, rehearse: null}
"""


class Sweep:
    """A sweep of the toy program, and what Slurm says about it."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        self.folder, self.environment = folder, environment
        (folder / "app.py").write_text(APP)
        (folder / "config.yaml").write_text(CONFIG)
        command = [sys.executable, "app.py", "-m", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def end(self, seconds: float = 200) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output

    def jobs(self) -> list[str]:
        path = self.folder / "study/.submitit/jobs.jsonl"
        eventually(lambda: path.exists() and path.read_text(), "submitted")
        return [json.loads(line)["job_id"] for line in path.read_text().splitlines()]

    def state(self, job: str) -> str:
        """Return the state and exit code of the job's last start, by the accounting."""
        return self.slurm("sacct", "-nXP", "-j", job, "-o", "State,ExitCode").strip().replace("|", " ")

    def read(self, run: str, name: str, rank: int = 0) -> list[str]:
        path = self.folder / "study" / run / f"{name}-{rank}"
        return path.read_text().splitlines() if path.exists() else []

    def until_step(self, run: str, step: int) -> None:
        eventually(lambda: str(step) in self.read(run, "steps"), f"{run} at step {step}")


@pytest.fixture
def submit(cluster, tmp_path):
    """`submit("steps=20")` submits a sweep of the toy program in the test's directory."""
    started: list[Sweep] = []

    def start(*arguments: str) -> Sweep:
        started.append(Sweep(tmp_path, cluster, *arguments))
        return started[-1]

    yield start
    for sweep in started:
        sweep.process.kill()


def continued_without_repeating_a_step(sweep: Sweep, run: str, rank: int = 0) -> bool:
    """Return True if there were two starts and each step was done once, in order."""
    steps = [int(step) for step in sweep.read(run, "steps", rank)]
    return len(sweep.read(run, "starts", rank)) == 2 and steps == list(range(1, len(steps) + 1))


def test_an_exception_on_any_rank_fails_the_job_and_no_other(submit):
    sweep = submit("do=work,raise", "raising_rank=1", "hydra.launcher.nodes=2")
    code, output = sweep.end()
    work, failing = sweep.jobs()
    assert code == 1
    assert "1 of 2 runs complete" in output
    assert "FAILED  raise0: ValueError: no such reward" in output
    assert sweep.state(work) == "COMPLETED 0:0"
    assert sweep.state(failing).startswith("FAILED")
    log = (sweep.folder / f"study/.submitit/{failing}/{failing}_1_log.out").read_text()
    assert "Traceback" in log


def test_tasks_on_several_nodes_know_their_group(submit):
    sweep = submit("steps=1", "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=2")
    code, output = sweep.end()
    groups = {tuple(sweep.read("work0", "starts", rank)[0].split()[1:]) for rank in range(4)}
    assert code == 0, output
    assert len(groups) == 1
    assert next(iter(groups))[0] == "4"


def test_a_preempted_run_saves_on_all_ranks_and_comes_back_alone(submit):
    shape = ("hydra.launcher={nodes:2,tasks_per_node:4,cpus_per_task:4}",)  # eight ranks on whole nodes
    sweep = submit("seed=0,1", "steps=40", "hydra.launcher.partition=preemptible", *shape)
    sweep.until_step("work0", 5)
    nodes = sweep.slurm("squeue", "-h", "-j", sweep.jobs()[0], "-o", "%N").strip()
    sweep.slurm("sbatch", "-p", "gpu", "--exclusive", "-N2", "-w", nodes, "-o", "/dev/null", "--wrap", "sleep 3")
    code, output = sweep.end(90)
    assert code == 0, output
    assert all(continued_without_repeating_a_step(sweep, "work0", rank) for rank in range(8))
    assert len(sweep.read("work1", "starts")) == 1
    assert sweep.read("work0", "child") == ["None"]  # what a run starts outlives the signal, and never the job:
    children = [int(pid) for rank in range(8) for pid in sweep.read("work0", "pids", rank)]
    eventually(lambda: not any(map(_is_a_living_child, children)), "all children gone")


def _is_a_living_child(pid: int) -> bool:
    """Return True if the process that the program started still runs; a zombie or a newer process does not count."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.cmdline() == ["sleep", "1000"]
    except psutil.NoSuchProcess:
        return False


def preempt(sweep: Sweep, run: str) -> None:
    """Submit a job of a higher tier to the run's nodes, so that Slurm sends SIGTERM to its ranks."""
    job = sweep.jobs()[0]
    eventually(lambda: sweep.read(run, "starts"), "started")
    nodes = sweep.slurm("squeue", "-h", "-j", job, "-o", "%N %D").split()
    sweep.slurm(
        "sbatch", "-p", "gpu", "--exclusive", f"-N{nodes[1]}", "-w", nodes[0], "-o", "/dev/null", "--wrap", "sleep 3"
    )


def warn(sweep: Sweep, run: str) -> None:
    """Send USR2, as Slurm does before a time limit."""
    eventually(lambda: sweep.read(run, "starts"), "started")
    sweep.slurm("scancel", "--signal=USR2", sweep.jobs()[0])


EIGHT = "hydra.launcher={partition:preemptible,nodes:2,tasks_per_node:4,cpus_per_task:4}"  # ranks, on whole nodes
SIGNALS = pytest.mark.parametrize(
    ("ask", "shape", "ranks"), [(warn, (), 1), (preempt, (EIGHT,), 8)], ids=["USR2 to one rank", "TERM to eight"]
)


@SIGNALS
def test_a_signal_in_c_code_is_handled_when_that_code_returns(submit, ask, shape, ranks):
    sweep = submit("steps=20", "c_s=4", *shape)
    eventually(lambda: all(sweep.read("work0", "c", rank) for rank in range(ranks)), "in C code")
    ask(sweep, "work0")
    code, output = sweep.end(120)
    assert code == 0, output
    for rank in range(ranks):
        assert continued_without_repeating_a_step(sweep, "work0", rank)
        assert sweep.read("work0", "c", rank) == ["begun", "returned", "begun", "returned"]


FLAKY = """#!/bin/sh
[ "$1" = requeue ] && [ ! -e "{refused}" ] && touch "{refused}" && echo "slurm_requeue error: Socket timed out" >&2 && exit 1
exec {scontrol} "$@"
"""


def test_a_time_limit_s_warning_requeues_the_run_though_the_controller_is_busy(submit, cluster, tmp_path, monkeypatch):
    fake, refused = tmp_path / "bin/scontrol", tmp_path / "refused"
    fake.parent.mkdir()
    fake.write_text(FLAKY.format(refused=refused, scontrol=shutil.which("scontrol")))
    fake.chmod(0o755)
    monkeypatch.setitem(cluster, "PATH", f"{fake.parent}:{cluster['PATH']}")
    sweep = submit("steps=40")
    sweep.until_step("work0", 5)
    warn(sweep, "work0")
    code, output = sweep.end(90)
    assert code == 0, output
    assert refused.exists()
    assert continued_without_repeating_a_step(sweep, "work0")
    bill = json.loads((sweep.folder / "study/work0/run.json").read_text())["bill"]  # which the launcher wrote last
    assert [start["state"] for start in bill["starts"]] == ["REQUEUED", "COMPLETED"]


@SIGNALS
def test_a_signal_during_the_imports_is_neither_fatal_nor_lost(submit, ask, shape, ranks):
    sweep = submit("import_s=3", "steps=20", *shape)
    ask(sweep, "work0")
    code, output = sweep.end(120)
    assert code == 0, output
    assert all(continued_without_repeating_a_step(sweep, "work0", rank) for rank in range(ranks))
    assert sweep.read("work0", "child") == ["None"]


def test_a_cancelled_run_saves_and_stays_cancelled(submit):
    sweep = submit("seed=0,1", "steps=40")
    sweep.until_step("work0", 5)
    sweep.slurm("scancel", sweep.jobs()[0])
    code, _ = sweep.end(90)
    assert code == 1
    assert sweep.read("work0", "saved")
    assert len(sweep.read("work0", "starts")) == 1
    assert sweep.state(sweep.jobs()[0]).startswith("CANCELLED")
    assert sweep.state(sweep.jobs()[1]) == "COMPLETED 0:0"


def test_a_killed_rank_ends_the_job_as_failed_within_seconds(submit):
    sweep = submit("steps=1000", "hydra.launcher.tasks_per_node=2")
    eventually(lambda: sweep.read("work0", "steps", 0) and sweep.read("work0", "steps", 1), "started")
    began = time.monotonic()
    psutil.Process(int(sweep.read("work0", "pids", 1)[0])).parent().kill()
    eventually(lambda: sweep.state(sweep.jobs()[0]).startswith("FAILED"), "failed")
    assert time.monotonic() - began < 20
    code, output = sweep.end()
    assert code == 1
    assert "task 1: Killed" in output


def test_a_queued_run_that_is_cancelled_elsewhere_is_no_longer_waited_for(submit):
    sweep = submit("seed=0,1", "steps=30", "hydra.launcher.array_parallelism=1")
    sweep.until_step("work0", 1)
    sweep.slurm("scancel", sweep.jobs()[1])
    code, output = sweep.end()
    assert code == 1
    assert "1 of 2 runs complete" in output
    assert "FAILED  work1: cancelled: before it started" in output


def test_a_node_that_goes_down_costs_only_what_was_not_saved(submit):
    sweep = submit("steps=30")
    sweep.until_step("work0", 5)
    node = sweep.slurm("squeue", "-h", "-j", sweep.jobs()[0], "-o", "%N").strip()
    sweep.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    subprocess.run([DEV_CLUSTER, "up"], env=sweep.environment, check=True)
    code, output = sweep.end(90)
    assert code == 0, output
    assert len(sweep.read("work0", "starts")) == 2


def test_a_job_runs_the_code_that_was_submitted(submit):
    sweep = submit("seed=0")
    sweep.end()
    (start,) = sweep.read("work0", "starts")
    copied = Path(start.split()[0]).parent
    assert sweep.folder in copied.parents
    assert (copied / "process_exit.py").read_bytes() == (ROOT / "flash_grpo/process_exit.py").read_bytes()
    assert json.loads((copied.parent / "git.json").read_text())["dirty"] in (True, False)


def test_a_detached_launcher_returns_at_once_and_the_jobs_run_on(submit):
    sweep = submit("seed=0,1", "detach=true")
    code, _ = sweep.end(20)
    assert code == 0
    assert not sweep.read("work0", "complete")
    eventually(lambda: sweep.read("work0", "complete") and sweep.read("work1", "complete"), "complete")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("hydra.launcher.partition=nowhere", "Invalid partition"),
        ("hydra.launcher={gpus_per_node:16,tasks_per_node:16}", "not available"),
        ("hydra.launcher={gpus_per_node:1,gpu_type:h100}", "not available"),
        ("hydra.launcher={gpus_per_node:a100:1}", "their type goes to hydra.launcher.gpu_type=a100"),
        ("hydra.launcher={gpus_per_node:8,tasks_per_node:1}", "gpus_per_node=8 but tasks_per_node=1"),
        ("hydra.launcher={timeout_min:5,signal_delay_s:300}", "leaves nothing"),
        ("hydra.launcher={partition:short,timeout_min:60}", "partition short allows 10"),
        ("hydra.launcher.account=nobody", "knows no such account of yours"),
        ("FLASH_GRPO_ACCOUNT=nobody", "knows no such account of yours"),
        ("FLASH_GRPO_PARTITION=nowhere", "Invalid partition"),
        ("FLASH_GRPO_CONSTRAINT=none", "Invalid feature"),
        ("SBATCH_PARTITION=nowhere", "Invalid partition"),  # a site's default, where nothing else is asked for
        ("seed=0,1 run_name=same", "one directory"),
        ("runs_root=.,other", "cannot be swept over"),
        ("run_name=a/b", "without a /"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_in_one_line_and_nothing_is_queued(
    submit, cluster, monkeypatch, argument, message
):
    name, _, value = argument.partition("=")
    if name.isupper():
        monkeypatch.setitem(cluster, name, value)
        argument = "seed=0"
    sweep = submit(*argument.split(" "))
    code, output = sweep.end(30)
    assert code == 2
    assert message in output
    assert len(output.strip().splitlines()) == 1
    assert not sweep.slurm("squeue", "-h")


def test_a_sweep_submitted_inside_an_allocation_asks_for_its_own(submit, cluster, monkeypatch):
    inside = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_TIMELIMIT": "1", "SBATCH_PARTITION": "short"}
    for name, value in inside.items():
        monkeypatch.setitem(cluster, name, value)
    sweep = submit("steps=1", "hydra.launcher.partition=preemptible")
    code, output = sweep.end()
    assert code == 0, output
    asked = ("sacct", "-nXP", "-j", sweep.jobs()[0], "-o", "Partition,TimelimitRaw,NTasks,AllocCPUS")
    # slurmctld reports starts every five seconds: until then a short job has only its end in the accounting
    eventually(lambda: sweep.slurm(*asked).partition("|")[0], "with a partition in the accounting")
    assert sweep.slurm(*asked).startswith("preemptible|5|")
    assert sweep.read("work0", "starts")[0].split()[1] == "None"


@pytest.fixture(scope="module")
def large_cluster():
    """Start a cluster of 32 nodes with 256 fake GPUs."""
    with cluster_of(nodes=32, port=PORT + 400, requeue_wait=120) as environment:
        yield environment


@pytest.mark.alone
def test_200_short_jobs_on_32_nodes_are_submitted_run_and_reported(large_cluster, tmp_path):
    limit = "hydra.launcher.timeout_min=20"  # 200 interpreters at once on a few real cores
    sweep = Sweep(tmp_path, large_cluster, "seed=range(200)", "steps=5", limit)  # of 0.2 s
    code, output = sweep.end(600)
    assert code == 0, output[-2000:]
    assert "200 of 200 runs complete" in output
    assert len({sweep.read(f"work{seed}", "complete")[0] for seed in range(200)}) == 1
    table = sweep.slurm(sys.executable, "-m", "flash_grpo.jobs", str(tmp_path / "study"))
    assert "200 runs: 200 complete" in table


@pytest.mark.alone
def test_submitting_200_runs_takes_less_than_two_compositions_each_checks_included(large_cluster, small, tmp_path):
    overrides = [override for override in small if "run_name" not in override]
    chosen = [*overrides, "slurm=cpu", "detach=true", f"runs_root={tmp_path}"]
    held = "+hydra.launcher.additional_parameters.hold=true"
    command = [sys.executable, ROOT / "train.py", "-m", "seed=range(200)", "study=many", held, *chosen]
    seconds = _seconds_on_free_cores(command, large_cluster)
    queued = subprocess.run(["squeue", "-h", "-r"], env=large_cluster, check=True, capture_output=True, text=True)
    assert len(queued.stdout.splitlines()) == 200
    assert seconds / 200 < 2 * _seconds_of_a_composition(chosen)


def _seconds_of_a_composition(overrides: list[str]) -> float:
    """Return how long this machine composes one configuration, which each run of a sweep must be."""
    took = []
    with initialize_config_dir(CONF, version_base="1.3"):
        for _ in range(9):
            began = time.process_time()
            compose("config", overrides=overrides, return_hydra_config=True)
            took.append(time.process_time() - began)
    return median(took)


def _seconds_on_free_cores(command: list, environment: dict[str, str]) -> float:
    """Call the command; return its wall seconds times the share of them that it ran when it could: 1 on free cores.

    The kernel counts for each process how long it ran, and how long it was ready while other work held the cores.
    """
    began, counts = time.monotonic(), dict[int, list[int]]()
    process = psutil.Popen(command, env=environment)
    while process.poll() is None:
        with suppress(psutil.Error, OSError):
            for each in (process, *process.children(recursive=True)):
                counts[each.pid] = [int(count) for count in Path(f"/proc/{each.pid}/schedstat").read_text().split()]
        time.sleep(0.5)
    assert process.returncode == 0
    ran, waited, _ = (sum(column) for column in zip(*counts.values(), strict=True))
    return (time.monotonic() - began) * ran / (ran + waited)
