"""The runs that tools/fault_campaign harms: what Slurm and their files say about them, and what a user does for them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from flash_grpo.cluster import slurm
from flash_grpo.cluster.run_state import OVER, RunState, run_states
from flash_grpo.records.files import last_recorded, read_manifest, read_records
from flash_grpo.run import checkpoint

PATIENCE_S = 900  # for one wait without a new iteration: on a busy machine a start alone may take minutes
LOOK_S = 2.0
MOST_RESUBMISSIONS = 5
PROGRAM = [sys.executable, "-m", "flash_grpo.jobs"]


class LostError(Exception):
    """The run did not end complete, or does not end; the message says what the table said last."""


class RefusedError(Exception):
    """The run refuses to go on and names what is to be done by hand."""


class TooLateError(Exception):
    """The run was complete before the fault could strike."""


@dataclass
class Watch:
    """Asks the jobs command's own functions about a study, every LOOK_S at most, for all threads."""

    study: Path
    states: dict[str, RunState] = field(default_factory=dict)
    asked: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def state(self, run: str) -> RunState | None:
        """Return the run's line of the table; None while Slurm has not answered yet."""
        with self.lock:
            if time.monotonic() - self.asked > LOOK_S:
                with suppress(slurm.NoSlurmError):  # a daemon that the campaign has killed; the last answer stands
                    self.states = {state.run: state for state in run_states(self.study, slurm.ask_about(self.study))}
                self.asked = time.monotonic()
            return self.states.get(run)


@dataclass
class Victim:
    """One run of a campaign. resubmitted: how often by hand."""

    watch: Watch
    name: str
    ranks: int
    resubmitted: int = 0
    last_why: str = ""

    @property
    def directory(self) -> Path:
        return self.watch.study / self.name

    @property
    def iteration(self) -> int:
        return last_recorded(self.directory)

    def state(self) -> str:
        seen = self.watch.state(self.name)
        return seen.state if seen else ""

    def job(self) -> str:
        """Return Slurm's name of the run's newest job."""
        seen = self.watch.state(self.name)
        assert seen and seen.job
        return seen.job.job_id

    def raw_job(self) -> str:
        """Return the number that Slurm gives the job's processes; for an element of an array another than its name."""
        return called("squeue", "-h", "-j", self.job(), "-o", "%A").strip()

    def nodes(self) -> list[str]:
        listed = called("squeue", "-h", "-j", self.job(), "-o", "%N").strip()
        return called("scontrol", "show", "hostnames", listed).split() if listed else []

    def restarts(self) -> int:
        """Ask how often Slurm has restarted the job; 0 where it does not answer."""
        shown = called("scontrol", "-o", "show", "job", self.job())
        return int(shown.partition("Restarts=")[2].partition(" ")[0] or 0)

    def processes(self, matches: Callable[[list[str]], bool]) -> list[psutil.Process]:
        """Return the processes of the job whose command line matches; all nodes are this machine."""
        return [process for process, line, job in _processes() if job == self.raw_job() and matches(line)]

    def rank_processes(self) -> list[psutil.Process]:
        return self.processes(lambda line: "submitit.core._submit" in line)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait for something; meanwhile cancel a job that outlives its run, and submit again a run that ended too early.

        TooLateError if it is complete first. LostError after PATIENCE_S without it and without a new iteration.
        """
        moved, iteration = time.monotonic(), -1
        while not holds():
            if self.state() == "complete":
                raise TooLateError
            if self.state() == "lingering":
                self._cancel()
            if self._ended():
                self._resubmit()
                moved = time.monotonic()
            if self.iteration != iteration or self.state() in ("waiting", "requeued", ""):
                moved, iteration = time.monotonic(), self.iteration
            if time.monotonic() - moved > PATIENCE_S:
                raise LostError(f"not {what}: {self.state()} {self.last_why}")
            time.sleep(0.5)

    def until_restarted(self, before: int) -> None:
        """Wait until Slurm has restarted the job or it is over; TooLateError if the run completes first."""
        self.wait(lambda: self.has_ended() or self.restarts() > before)

    def wait(self, holds: Callable[[], object]) -> None:
        """Wait for something that a fault causes; TooLateError if the run completes first."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds() and time.monotonic() < deadline:
            if self.state() == "complete":
                raise TooLateError
            time.sleep(0.5)

    def to_the_end(self) -> None:
        """Wait until the table says complete."""
        with suppress(TooLateError):
            self.until(lambda: False, "complete")

    def has_ended(self) -> bool:
        """Return True if the run is over, though its job may linger."""
        return self.state() in (*OVER, "lingering")

    def _cancel(self) -> None:
        """Do what the table says of a job that lingers."""
        print(f"  {self.name}: its job {self.job()} lingers: --cancel", flush=True)
        subprocess.run([*PROGRAM, self.watch.study, "--cancel", self.name], capture_output=True)
        self.watch.asked = 0.0
        time.sleep(LOOK_S)

    def _ended(self) -> bool:
        """Return True if two looks say that the run is over: accounting lags behind the queue."""
        if self.state() not in OVER:
            return False
        time.sleep(LOOK_S + 1)
        return self.state() in OVER and self.state() != "complete"

    def _resubmit(self) -> None:
        """Do what the README says of a run that has ended: submit it again. RefusedError, LostError after too many."""
        seen = self.watch.state(self.name)
        why = f"{seen.state}: {seen.why}" if seen else ""
        if self.resubmitted >= MOST_RESUBMISSIONS:
            raise (RefusedError if "or delete" in why or "Put one back" in why else LostError)(why)
        done = subprocess.run([*PROGRAM, self.watch.study, "--resubmit", self.name], capture_output=True, text=True)
        self.resubmitted += not done.returncode
        self.last_why = why if not done.returncode else done.stderr.strip()
        print(f"  {self.name}: {why}: {(done.stdout or done.stderr).strip()}", flush=True)
        self.watch.asked = 0.0
        time.sleep(LOOK_S)


def _processes() -> Iterator[tuple[psutil.Process, list[str], str]]:
    for process in psutil.process_iter(["cmdline", "environ"]):
        job = (process.info["environ"] or {}).get("SLURM_JOB_ID", "")
        yield process, process.info["cmdline"] or [], job


def called(*command: str, tries: int = 20) -> str:
    """Call one of Slurm's commands, again while it fails: a daemon may be down. '' if it never succeeds."""
    for _ in range(tries):
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            return done.stdout
        time.sleep(1)
    return ""


def differs(ours: Path, whole: Path) -> str:
    """Say what a run has computed otherwise than the undisturbed one; '' if all records and weights are the same."""
    if len(read_manifest(whole).starts) != 1:
        return "the run that was to be undisturbed was started twice"
    if [_untimed(record) for record in read_records(ours)] != [_untimed(record) for record in read_records(whole)]:
        return "other records than the undisturbed run"
    mine, theirs = (checkpoint.newest(directory)["parameters"] for directory in (ours, whole))
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    return "" if same else "other weights than the undisturbed run"


def _untimed(record: dict) -> dict:
    cost = {key: value for key, value in record["cost"].items() if not key.endswith("_seconds")}
    return {
        **{key: value for key, value in record.items() if key not in ("seconds", "evaluation_seconds")},
        "cost": cost,
    }


def submit(folder: Path, study: str, names: list[str], shape: str, *options: str) -> None:
    """Submit the runs `names` of one configuration as a sweep. shape: the launcher's resources."""
    command = [sys.executable, "train.py", "-m", "slurm=cpu", f"hydra.launcher={shape}", *CONFIGURATION, *options]
    places = [f"runs_root={folder}", f"study={study}", f"run_name={','.join(names)}"]
    done = subprocess.run([*command, *places, "detach=true"], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"fault_campaign: {json.dumps(names)} could not be submitted: {done.stderr or done.stdout}")


CONFIGURATION = (
    "device=cpu",
    "schedule.num_steps=11",
    "method.plan.last_step=3",
    "rollout.layout.num_prompts=2",
    "rollout.layout.group_size=4",
    "evaluation.every=0.5",
    "evaluation.sampler.schedule.num_steps=2",
    "evaluation.sampler.noises_per_prompt=1",
    "checkpoint.every=7",
    "budget.pflop=null",
    "hydra.launcher.rehearse=null",
)
