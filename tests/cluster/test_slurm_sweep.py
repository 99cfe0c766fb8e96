"""Test the trainer in a real Slurm, tools/dev_cluster, on sweeps that are preempted, killed, edited and misused."""

import json
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from omegaconf import OmegaConf
from slurm_cluster import MARKS, PORT, ROOT, Study, cluster_of, eventually, what_was_computed

from flash_grpo.records.files import read_manifest, read_records
from flash_grpo.run import checkpoint, loop

pytestmark = MARKS
RATES = {"failing": 1e30, "preempted": 1e-4, "limited": 1.1e-4, "node_down": 1.2e-4, "killed": 1.3e-4}
# longer than Slurm may take to notice a time limit, also where nothing else runs
LONG = ("budget.iterations=350", "evaluation.every=0.5", "checkpoint.every=7", "method.plan.last_step=3")
WAIT_S = 300


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return checkpoint.newest(directory)["parameters"]


@pytest.fixture
def undisturbed(config, tmp_path):
    """`undisturbed("name", "seed=1")` goes through such a run in this process and returns its directory."""

    def trained(name: str, *overrides: str) -> Path:
        cfg = config(*overrides, f"runs_root={tmp_path}", "study=undisturbed", f"run_name={name}")
        return loop.run(cfg, cfg.run_name)

    return trained


def _disturb(study: Study, names: dict[str, str], jobs: dict[str, str]) -> None:
    """Let one run meet its time limit, preempt another, take a third's node away, and kill a rank of a fourth."""
    study.until_iteration(names["limited"], 1)
    study.slurm("scontrol", "update", f"jobid={jobs['limited']}", "timelimit=1")
    eventually(lambda: study.restarts(names["limited"]), "requeued at its time limit", WAIT_S)
    study.slurm("scontrol", "update", f"jobid={jobs['limited']}", "timelimit=5")
    study.until_iteration(names["preempted"], 10)
    node = study.node(names["preempted"])
    study.slurm("sbatch", "-p", "gpu", "--exclusive", "-w", node, "-o", "/dev/null", "--wrap", "sleep 1")
    study.until_iteration(names["node_down"], 10)
    node = study.node(names["node_down"])
    study.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    eventually(lambda: study.in_service(node), f"{node} taken back")
    study.until_iteration(names["killed"], 10)
    study.slurm("scancel", "--signal=KILL", f"{jobs['killed']}.0")


def test_a_sweep_survives_a_cluster_bit_identically(submit, undisturbed):
    """Cause a preemption, a time limit, a node failure, a killed rank, and an error that must stay a failure."""
    shape = ("hydra.launcher={partition:preemptible,cpus_per_task:16,timeout_min:5,signal_delay_s:45}",)
    rates = ",".join(str(rate) for rate in RATES.values())
    study = submit(f"optim.optimizer.lr={rates}", *LONG, *shape, name="lr${optim.optimizer.lr}")
    names = {what: f"lr{rate}" for what, rate in RATES.items()}
    jobs, began = {what: study.job(name) for what, name in names.items()}, time.monotonic()
    _disturb(study, names, jobs)
    wholes = {
        what: undisturbed(what, *LONG, f"optim.optimizer.lr={RATES[what]}") for what in RATES if what != "failing"
    }
    output, _ = study.launcher.communicate(timeout=200)
    assert study.launcher.returncode == 1
    assert "3 of 5 runs complete" in output
    assert study.state(names["killed"]) == study.state(names["failing"]) == "failed"
    assert f"submitted {names['killed']} again" in study.jobs("--resubmit", "failed")
    study.until(names["killed"], "complete")
    study.until(names["failing"], "failed")
    assert "diverged" in study.line(names["failing"])
    assert time.monotonic() - began < 600  # after which a start stops waiting for a lock that nobody gives back

    for what, whole in wholes.items():
        manifest = read_manifest(study.directory(names[what]))
        assert manifest.status == "completed"
        assert len(manifest.starts) >= 2, what
        assert what_was_computed(study.directory(names[what])) == what_was_computed(whole), what
        ours, theirs = _weights(study.directory(names[what])), _weights(whole)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    failed = read_manifest(study.directory(names["failing"]))
    assert (failed.status, "not finite" in failed.reason) == ("failed", True)
    assert [record["kind"] for record in read_records(study.directory(names["failing"]))][-1] == "failure"


@pytest.fixture
def other_cluster(request):
    """Start a cluster that preempts in another way than the one that the tests share."""
    with cluster_of(nodes=1, port=PORT + 800, **request.param) as environment:
        yield environment


@pytest.mark.parametrize("other_cluster", [{"grace": 0}, {"signal": "USR2"}], indirect=True, ids=["no grace", "USR2"])
def test_a_preempted_run_ends_bit_identically_however_the_site_preempts(other_cluster, submit, undisturbed):
    budget = ("seed=2", "budget.iterations=60", "evaluation.every=0.5", "checkpoint.every=5")
    shape = "hydra.launcher={partition:preemptible,cpus_per_task:16}"
    study = submit(*budget, shape, environment=other_cluster)
    study.until_iteration("seed2", 12)
    study.slurm("sbatch", "-p", "gpu", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    output, _ = study.launcher.communicate(timeout=WAIT_S)
    assert study.launcher.returncode == 0, output
    starts = read_manifest(study.directory("seed2")).starts
    assert [start.iteration >= 10 for start in starts] == [False, True]
    assert what_was_computed(study.directory("seed2")) == what_was_computed(undisturbed("whole", *budget))


def test_four_ranks_on_two_nodes_make_the_rollouts_of_one(submit, undisturbed):
    few = ("budget.iterations=3", "evaluation.every=1", "method.kl_weight=0.004")
    study = submit("seed=3", *few, "hydra.launcher={nodes:2,tasks_per_node:2,cpus_per_task:1}")
    output, _ = study.launcher.communicate(timeout=WAIT_S)
    assert study.launcher.returncode == 0, output
    alone = undisturbed("alone", *few, "seed=3")
    assert read_manifest(study.directory("seed3")).world_size == 4
    for theirs, ours in zip(what_was_computed(study.directory("seed3")), what_was_computed(alone), strict=True):
        assert theirs["reward_mean"] == pytest.approx(ours["reward_mean"], abs=3e-4)
        assert theirs["cost"] == ours["cost"]
        for name in ("steps", "transitions", "prompt_rewards"):
            assert theirs.get(name) == pytest.approx(ours.get(name), abs=1e-3)
    logs = sorted(path.name for path in Path(study.lines()[0]["folder"]).glob("*_log.out"))
    assert len(logs) == 4


def process_of(study: Study, run: str, rank: int) -> psutil.Process:
    """Find the process of a rank: all nodes of the cluster are this machine."""
    ids = {"SLURM_JOB_ID": study.job(run), "SLURM_PROCID": str(rank)}  # the job is not part of an array
    return next(
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "submitit.core._submit" in (process.info["cmdline"] or [])
        and ids.items() <= (process.info["environ"] or {}).items()
    )


def test_a_group_over_two_nodes_that_is_asked_to_stop_on_one_rank_ends_as_an_undisturbed_group(submit):
    overrides = ("budget.iterations=30", "seed=8", "hydra.launcher={nodes:2,tasks_per_node:2,cpus_per_task:1}")
    whole, preempted = (submit(*overrides, name=name) for name in ("whole", "preempted"))
    preempted.until_iteration("preempted", 5)
    process_of(preempted, "preempted", rank=3).send_signal(signal.SIGUSR2)
    for study in (whole, preempted):
        output, _ = study.launcher.communicate(timeout=200)
        assert study.launcher.returncode == 0, output
    first, second = (study.directory(name) for study, name in ((whole, "whole"), (preempted, "preempted")))
    assert [len(read_manifest(directory).starts) for directory in (first, second)] == [1, 2]
    assert what_was_computed(first) == what_was_computed(second)
    theirs, ours = _weights(first), _weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def in_its_imports(study: Study, run: str, restarts: int) -> bool:
    """Return True if Python has begun after that many restarts; its imports then take seconds."""
    log = Path(study.lines()[-1]["folder"]) / f"{study.job(run)}_0_log.out"
    return log.exists() and log.read_text().count("Starting with JobEnvironment") == restarts + 1


def test_a_run_that_gets_nowhere_stops_as_failed_and_says_so(submit):
    """Ask each start to stop before it has done anything, so that it is requeued until the limit."""
    study = submit("seed=4", "checkpoint.max_idle_starts=2", "budget.iterations=10000")
    job, directory = study.job("seed4"), study.directory("seed4")
    for restarts in (0, 1):
        eventually(partial(in_its_imports, study, "seed4", restarts), f"in the imports after {restarts} restarts")
        study.slurm("scancel", "--signal=USR2", job)
    output, _ = study.launcher.communicate(timeout=WAIT_S)
    assert study.launcher.returncode == 1
    assert "started 2 times without completing a micro-batch after iteration 0: giving up" in output
    assert read_manifest(directory).status == "failed"
    assert study.slurm("sacct", "-nXP", "-j", job, "-o", "State").strip() == "FAILED"


ONE_RANK = """
import os, signal
from dataclasses import dataclass
from flash_grpo.algorithm.plans import OneStep

@dataclass(frozen=True)
class OnRankOne(OneStep):
    def __call__(self, batch, num_steps, seed):
        if os.environ.get("RANK") == "1" and batch.iteration == 2:
            {does}
        return super().__call__(batch, num_steps, seed)
"""
DOES = {"raises": "raise ValueError('no such plan')", "is killed": "os.kill(os.getpid(), signal.SIGKILL)"}


@pytest.mark.parametrize("what", DOES)
def test_a_failure_on_one_rank_ends_the_group_within_seconds_and_is_reported(submit, tmp_path, what):
    """Let one rank fail while the other waits in a collective. An exception must reach the rank's log and run.json."""
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy(ROOT / "train.py", tree)
    (tree / "one_rank.py").write_text(ONE_RANK.format(does=DOES[what]))
    shape = "hydra.launcher={nodes:2,cpus_per_task:1}"
    own = ("method.plan._target_=one_rank.OnRankOne", "method.name=own", "optim.optimizer.lr=1e-4")
    study = submit("seed=9", "budget.iterations=1000", shape, *own, tree=tree)
    study.until_iteration("seed9", 1)
    began = time.monotonic()
    study.until("seed9", "failed")
    assert time.monotonic() - began < 25
    output, _ = study.launcher.communicate(timeout=WAIT_S)
    why = {"raises": "ValueError: no such plan (rank 1 of 2)", "is killed": "task 1: Killed"}[what]
    assert why in study.line("seed9")
    assert why in output.splitlines()[-2]
    assert study.slurm("sacct", "-nXP", "-j", study.job("seed9"), "-o", "State").strip() == "FAILED"
    manifest = read_manifest(study.directory("seed9"))
    assert manifest.status == "failed"
    if what == "raises":
        log = Path(study.lines()[0]["folder"]) / f"{study.job('seed9')}_1_log.out"
        assert manifest.reason == why
        assert "in __call__" in manifest.traceback
        assert "Traceback" in log.read_text()


MINE = """
from dataclasses import dataclass
import torch
import helper

@dataclass(frozen=True)
class EarlySteps:
    count: int
    def candidates(self, num_steps):
        return torch.arange(num_steps) < self.count
    def __call__(self, batch, num_steps, seed):
        return self.candidates(num_steps).expand(len(batch), -1)
"""


def _tree(tree: Path) -> Path:
    """Clone the checkout, and bring it to what it is now, with an edit and two modules and prompts of the user's own."""
    subprocess.run(["git", "clone", "-q", ROOT, tree], check=True)
    subprocess.run(["cp", "-r", *(ROOT / name for name in ("flash_grpo", "hydra_plugins")), tree], check=True)
    with open(tree / "README.md", "a") as file:
        file.write("edited before\n")
    (tree / "mine.py").write_text(MINE)
    (tree / "helper.py").touch()
    for name in ("train", "test"):
        (tree / f"{name}.txt").write_text("a red ball moving left\na blue ball moving up\n")
    return tree


def test_editing_the_tree_changes_nothing_that_is_queued(submit, cluster, tmp_path, monkeypatch):
    """The code, a method of the user's own included, and the configuration of every start are those of the submission."""
    tree = _tree(tmp_path / "tree")
    own = (
        "method=full",
        "method.name=own",
        "optim.optimizer.lr=1e-4",
        "method.plan._target_=mine.EarlySteps",
        "~method.plan.skip_last",
        "+method.plan.count=3",
    )
    held = "+hydra.launcher.additional_parameters.hold=true"
    cache = "+model.embedding_cache=${oc.env:CACHE}"
    monkeypatch.setitem(cluster, "CACHE", str(tmp_path / "text"))
    own += ("prompts=file", *(f"prompts.{name}={tree}/{name}.txt" for name in ("train", "test")))
    study = submit("seed=5", "budget.iterations=40", "detach=true", held, cache, *own, tree=tree)
    assert study.launcher.wait(60) == 0, study.launcher.stdout.read()
    resolved = OmegaConf.load(study.folder / "study/.submitit/config/seed5.yaml")
    assert (resolved.model.embedding_cache, resolved.run_name) == (str(tmp_path / "text"), "seed5")
    for name in ("flash_grpo/training/trainer.py", "mine.py", "helper.py", "train.txt", "test.txt"):
        (tree / name).write_text("raise RuntimeError('edited')\n")
    (tree / "flash_grpo/conf/method/full.yaml").write_text("edited: true\n")
    study.slurm("scontrol", "release", study.job("seed5"))
    study.until_iteration("seed5", 3)
    study.slurm("scancel", "--signal=USR2", study.job("seed5"))
    study.until("seed5", "complete")
    assert len(read_manifest(study.directory("seed5")).starts) == 2
    steps = [record["steps"] for record in read_records(study.directory("seed5")) if record["kind"] == "iteration"]
    assert all(sum(share > 0 for share in step_T) == 3 for step_T in steps)
    (first, *_) = read_records(study.directory("seed5"))
    assert set(first["prompt_rewards"]) == {"a red ball moving left", "a blue ball moving up"}
    copied = Path(study.lines()[0]["code"])
    assert json.loads((copied / "git.json").read_text())["commit"]
    assert "+edited before" in (copied / "dirty.diff").read_text()


def test_a_run_that_waits_or_runs_is_not_submitted_again(submit):
    study = submit("seed=6", "budget.iterations=10000", "detach=true")
    assert study.launcher.wait(60) == 0
    again = submit("seed=6,7", "budget.iterations=10000", "detach=true")
    output, _ = again.launcher.communicate(timeout=WAIT_S)
    assert again.launcher.returncode == 2
    assert f"seed6 is job {study.job('seed6')}" in output
    assert len(study.lines()) == 1
