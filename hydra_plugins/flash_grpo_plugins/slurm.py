"""`hydra/launcher=slurm_resumable`: a sweep as a Slurm job array that can be trusted with days.

What this adds to hydra-submitit-launcher: a run that fails is FAILED in Slurm, on whichever rank; one that is preempted
or at its time limit saves, is requeued and goes on; what was submitted, code and configuration, is what every start
runs; the launcher waits for all runs and names every failure, or, with `detach=true`, writes the job ids and returns.
"""

import getpass
import hashlib
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import get_method
from omegaconf import OmegaConf

from flash_grpo.cluster import slurm
from flash_grpo.cluster.bill import write_bills
from flash_grpo.cluster.board import Board, Run, compose, refuse
from flash_grpo.cluster.node import run_on_node
from flash_grpo.cluster.run_state import ALIVE, OVER, Standing, standing, standings
from flash_grpo.cluster.snapshot import snapshot
from flash_grpo.cluster.submission import RefusedError, job_line, submit, write_jobs
from flash_grpo.records import submissions
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

log = logging.getLogger(__name__)

# submitit's own names of what Slurm calls time, mem and ntasks-per-node; all else goes to sbatch by its name.
SUBMITIT_NAMES = ("timeout_min", "mem_gb", "tasks_per_node", "nodes", "cpus_per_task", "gpus_per_node", "name")
SUBMITIT_NAMES += ("stderr_to_stdout",)
NOT_SBATCH = ("submitit_folder", "max_num_timeout")
COMMANDS = ("sbatch", "srun", "scontrol", "sacct", "squeue", "sinfo")
ASK_SLURM_S, LOOK_AGAIN_S = 15.0, 2.0  # the second where a run seems to be over
SETTLE_S = 20.0  # how long the accounting is waited for when all runs are over


@dataclass
class SlurmResumableConf(SlurmQueueConf):
    _target_: str = "hydra_plugins.flash_grpo_plugins.slurm.ResumableSlurmLauncher"
    submitit_folder: str = "${hydra.sweep.dir}/%j"
    name: str = "${study}"
    # a site's own; or hydra.launcher.partition=... on the command line
    account: str | None = "${oc.env:FLASH_GRPO_ACCOUNT,null}"
    partition: str | None = "${oc.env:FLASH_GRPO_PARTITION,null}"
    constraint: str | None = "${oc.env:FLASH_GRPO_CONSTRAINT,null}"
    qos: str | None = "${oc.env:FLASH_GRPO_QOS,null}"
    timeout_min: int = 24 * 60  # of one start; a run goes on in the next
    signal_delay_s: int = 300  # the time to save in, before the time limit
    stderr_to_stdout: bool = True  # one log per rank
    additional_parameters: dict[str, Any] = field(default_factory=lambda: {"requeue": True})
    srun_args: list[str] = field(default_factory=lambda: ["--kill-on-bad-exit=1", "--wait=0"])
    detach: bool = "${oc.select:detach,false}"  # submit and return at once
    # a function (cfg, ranks) that raises ValueError where a point of the sweep could not begin; null: nothing is tried
    rehearse: str | None = "flash_grpo.run.rehearsal.rehearse"
    # keys that name files which a run reads, copied at submission
    files: list[str] = field(default_factory=lambda: ["prompts.train", "prompts.test"])


ConfigStore.instance().store("slurm_resumable", SlurmResumableConf, group="hydra/launcher", provider="flash_grpo")


class ResumableSlurmLauncher(SlurmLauncher):
    def __init__(
        self, detach: bool = False, rehearse: str | None = None, files: Sequence[str] = (), **params: Any
    ) -> None:
        super().__init__(**params)
        self.detach, self.rehearse, self.files = detach, rehearse, tuple(files)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        self._refuse_what_cannot_run()
        runs = compose(self, job_overrides, initial_job_idx)
        self._rehearse(runs)
        study = Path(self.config.hydra.sweep.dir)
        _refuse_other_studies(study.parent, runs)
        self._refuse_those_under_way(study.parent, runs)
        code = snapshot(study / "code")
        for run in runs:
            _copy_files(run, self.files, study / "files")
            _resolve(run, study / "config")
        jobs = self._submit(study, runs, code)
        write_jobs(study, [_line(run, job, code) for run, job in zip(runs, jobs, strict=True)])
        log.info("submitted %d runs as %s; python -m flash_grpo.jobs %s", len(runs), _short(jobs), study.parent)
        if self.detach:
            return _completed(runs)
        return _wait(runs, jobs, study.parent)

    def _refuse_what_cannot_run(self) -> None:
        missing = [name for name in COMMANDS if not shutil.which(name)]
        if missing:
            refuse(
                f"{', '.join(missing)}: not found on this machine, so there is no Slurm here (slurm=local needs none)"
            )
        try:
            slurm.asked("sacct", "-nX", "-S", "now")
        except slurm.NoSlurmError as error:
            refuse(f"without Slurm's accounting no failure would be noticed ({error})")
        limit, delay = 60 * self.params["timeout_min"], self.params["signal_delay_s"]
        if delay >= limit:
            refuse(f"hydra.launcher: signal_delay_s={delay} leaves nothing of timeout_min={limit // 60} to run in")
        gpus, tasks = self.params["gpus_per_node"] or 0, self.params["tasks_per_node"]
        if gpus not in (0, tasks):
            refuse(f"hydra.launcher: gpus_per_node={gpus} but tasks_per_node={tasks}; each rank has one GPU")
        try:
            _refuse_what_the_site_lacks(self.params["account"], self.params["partition"], self.params["timeout_min"])
        except slurm.NoSlurmError as error:
            refuse(str(error))

    def _rehearse(self, runs: list[Run]) -> None:
        if not self.rehearse:
            return
        rehearse, ranks = get_method(self.rehearse), self.params["nodes"] * self.params["tasks_per_node"]
        for run in runs:
            try:
                rehearse(run.cfg, ranks)
            except ValueError as error:
                refuse(f"{run.name}: {error}")

    def _submit(self, folder: Path, runs: list[Run], code: Path) -> list[Any]:
        shape = {
            "folder": str(Path(self.params["submitit_folder"]).absolute()),
            "python": _python(code),
            "parameters": self._parameters(),
        }
        points = [(self, run.cfg, run.number, Singleton.get_state()) for run in runs]
        try:
            return submit(folder, shape, run_on_node, points)
        except RefusedError as error:
            refuse(f"Slurm takes no such job: {error}")

    def _refuse_those_under_way(self, study: Path, runs: list[Run]) -> None:
        """Two jobs of one run would wait for each other's directory."""
        try:
            known = standings(study, slurm.ask_of(study))
        except slurm.NoSlurmError as error:
            refuse(str(error))
        for one in known:
            if one.state in ALIVE and one.run in {run.name for run in runs}:
                refuse(
                    f"{one.run} is job {one.job['job_id']}, {one.state} (to end it: "
                    f"python -m flash_grpo.jobs {study} --cancel {one.run})"
                )

    def _parameters(self) -> dict[str, Any]:
        asked = {key: value for key, value in self.params.items() if key not in NOT_SBATCH}
        if asked["cpus_per_task"]:  # since Slurm 22.05 a step does not inherit it, and would be bound to one core
            asked["srun_args"] = [*asked["srun_args"], f"--cpus-per-task={asked['cpus_per_task']}"]
        asked["additional_parameters"] = {"chdir": os.getcwd(), **asked["additional_parameters"]}
        return {key if key in SUBMITIT_NAMES else f"slurm_{key}": value for key, value in asked.items()}


def _refuse_other_studies(study: Path, runs: list[Run]) -> None:
    """What finds the runs again lies in one study."""
    here = os.path.abspath(study)
    for run in runs:
        there = os.path.dirname(os.path.abspath(run.directory))
        if there != here:
            refuse(
                f"{run.name}: lies in {there}, the sweep in {here}; study and runs_root cannot be swept over on Slurm"
            )


def _refuse_what_the_site_lacks(account: str | None, partition: str | None, minutes: int) -> None:
    """What sbatch may take and then never start. An unknown partition it refuses itself."""
    if account and shutil.which("sacctmgr"):
        mine = (f"user={getpass.getuser()}", f"account={account}", "format=account")
        if not slurm.asked("sacctmgr", "-nP", "show", "assoc", *mine).strip():
            refuse(f"hydra.launcher.account={account}: Slurm's accounting knows no such account of yours")
    partition = partition or os.environ.get("SBATCH_PARTITION")
    chosen = ["-p", partition] if partition else []
    for line in slurm.asked("sinfo", "-h", "-o", "%P|%l", *chosen).splitlines():
        name, longest = line.split("|")
        if (partition or name.endswith("*")) and minutes > _minutes(longest):
            refuse(
                f"hydra.launcher.timeout_min={minutes}: partition {name.rstrip('*')} allows {_minutes(longest):.0f}; a run "
                "that reaches its time limit goes on in the next start"
            )


def _minutes(limit: str) -> float:
    """Of Slurm's [days-]hours:minutes:seconds, or infinite."""
    if not limit[:1].isdigit():
        return float("inf")
    days, _, clock = limit.rpartition("-")
    seconds = sum(int(part) * 60**power for power, part in enumerate(reversed(clock.split(":"))))
    return int(days or 0) * 1440 + seconds / 60


def _copy_files(run: Run, keys: Sequence[str], folder: Path) -> None:
    """What the run reads is what these files held when it was submitted; a copy is named by its content."""
    for key in keys:
        path = OmegaConf.select(run.cfg, key)
        if isinstance(path, str) and Path(path).is_file():
            content = Path(path).read_bytes()
            copy = folder.absolute() / f"{hashlib.sha256(content).hexdigest()[:12]}-{Path(path).name}"
            if not copy.exists():
                folder.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
            OmegaConf.update(run.cfg, key, str(copy))


def _resolve(run: Run, folder: Path) -> None:
    """Nothing of the configuration is left to be found out on a node; a copy to read goes to `folder`/RUN.yaml."""
    keys = [key for key in run.cfg if key != "hydra" and not OmegaConf.is_missing(run.cfg, key)]
    for key in keys:
        if OmegaConf.is_config(part := run.cfg[key]):
            OmegaConf.resolve(part)
        else:
            run.cfg[key] = part
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{run.name}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.masked_copy(run.cfg, keys)))


def _python(code: Path) -> str:
    """The interpreter of every rank at every start, on the copied code. The signals that ask a run to stop are blocked
    before Python begins, so that none is lost or fatal during the imports."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(code), *([inherited] if inherited else [])])
    settings = [f"PYTHONPATH={path}", "PYTHONSAFEPATH=1"]  # safe: the working directory holds other code by then
    return shlex.join(["env", "--block-signal=USR2", "--block-signal=TERM", *settings, sys.executable])


def _line(run: Run, job: Any, code: Path) -> dict[str, Any]:
    return job_line(job, run=run.name, directory=run.directory, overrides=run.overrides, code=str(code))


def _wait(runs: list[Run], jobs: list[Any], study: Path) -> list[JobReturn]:
    for run, job in zip(runs, jobs, strict=True):
        run.job, run.began = job, time.monotonic()
    board, watch = Board(running=list(runs)), _Watch(study)
    try:
        while board.running:
            board.collect(over=watch.over)
            time.sleep(1)
    except KeyboardInterrupt:
        log.warning("no longer waiting; %d runs go on: python -m flash_grpo.jobs %s", len(board.running), study)
        sys.exit(130)
    _write_bills(study)
    board.end()
    return _completed(runs)


def _completed(runs: list[Run]) -> list[JobReturn]:
    return [JobReturn(overrides=run.overrides, status=JobStatus.COMPLETED) for run in runs]


class _Watch:
    """Which runs are over, and how, decided as the jobs command does it: from Slurm and their run.json together."""

    def __init__(self, study: Path) -> None:
        self.study, self.asked, self.seemed_over = study, 0.0, set()

    def over(self, runs: list[Run]) -> list[tuple[Run, str]]:
        """With why it is no success, empty if it is. What is not complete has to be over on two looks."""
        soon = self.seemed_over or any(run.job.paths.result_pickle.exists() for run in runs)
        if time.monotonic() - self.asked < (LOOK_AGAIN_S if soon else ASK_SLURM_S):
            return []
        try:
            answer, lines = slurm.ask_of(self.study), submissions.submitted(self.study)
        except slurm.NoSlurmError as error:
            log.warning("Slurm could not be asked (%s), and is asked again", error)
            return []
        finally:
            self.asked = time.monotonic()
        gone = [run for run in runs if lines[run.name][-1]["job_id"] not in answer.queued]
        found = {run.name: standing(self.study / run.name, lines[run.name], answer) for run in gone}
        ended = [run for run in gone if found[run.name].state in OVER]
        sure = [run for run in ended if run.name in self.seemed_over or found[run.name].state == "complete"]
        self.seemed_over = {run.name for run in ended}
        return [(run, _why_no_success(found[run.name])) for run in sure]


def _why_no_success(one: Standing) -> str:
    if one.state == "complete":
        return ""
    return one.why if one.state == "failed" else f"{one.state}{f': {one.why}' if one.why else ''}"


def _write_bills(study: Path) -> None:
    """The accounting hears of a job's end a moment later than the queue. What it does not say in time, and what still
    runs for another command, `python -m flash_grpo.jobs` writes."""
    deadline = time.monotonic() + SETTLE_S
    with suppress(slurm.NoSlurmError):
        while write_bills(study, slurm.ask_of(study)) and time.monotonic() < deadline:
            time.sleep(1)


def _short(jobs: list[Any]) -> str:
    """12_0, 12_1, 12_2 are all elements of array 12."""
    return jobs[0].job_id.split("_")[0]
