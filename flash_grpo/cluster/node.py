"""Execute a run in the processes of its ranks, on this machine or on Slurm's nodes."""

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from omegaconf import DictConfig, open_dict

from flash_grpo.cluster import slurm
from flash_grpo.cluster.points import SweepLauncher
from flash_grpo.process_exit import end_at_once
from flash_grpo.records.slurm_job import SlurmJob

INTERRUPTED = 130  # the exit code of a run that was asked to stop, has saved on all ranks, and can be continued
WAIT_FOR_OTHERS_S = 10
ASK_AGAIN_S, SCONTROL_S = 3, 30
WARNED = ".warned"  # suffix of the mark of a rank that got USR2


def run_here(launcher: SweepLauncher, cfg: DictConfig, number: int, singletons: Any, gpus: str) -> JobReturn:
    """Execute a run on this machine. gpus: a value of CUDA_VISIBLE_DEVICES.

    Until the run handles SIGTERM itself, SIGTERM ends it as Ctrl-C would.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return _run(launcher, cfg, number, singletons)


def run_on_node(launcher: SweepLauncher, cfg: DictConfig, number: int, singletons: Any) -> JobReturn:
    """Execute a run under Slurm, as one of its ranks. Requeue a run that was asked to stop if Slurm wants to restart it.

    SIGTERM and USR2 are blocked before Python begins: they stay pending until the run looks for them
    (`signal.sigpending`), and do not kill the processes that the run starts.
    """
    _forget_earlier_starts()
    end_at_once(1)  # the exit code if an exception leaves this function; submitit writes the traceback first
    try:
        result = _run(launcher, cfg, number, singletons)
    except SystemExit as exit:
        if exit.code == INTERRUPTED:
            _leave()
        end_at_once(exit.code if isinstance(exit.code, int) else 1)
        raise
    end_at_once(0)
    return result


def run_again(point: str) -> JobReturn:
    """Execute what an earlier job was submitted to do. point: the path of that job's pickle."""
    import submitit

    return submitit.core.utils.DelayedSubmission.load(point).result()


def _forget_earlier_starts() -> None:
    """Delete the result file of an earlier start that died with its node: the launcher would take it for this start's."""
    import submitit

    submitit.JobEnvironment().paths.result_pickle.unlink(missing_ok=True)


def _run(launcher: SweepLauncher, cfg: DictConfig, number: int, singletons: Any) -> JobReturn:
    """Let Hydra call the program's own function. An exception is raised again, so that it reaches the log and Slurm."""
    job = export_ranks()
    Singleton.set_state(singletons)
    setup_globals()
    with open_dict(cfg.hydra.job):
        cfg.hydra.job.id, cfg.hydra.job.num = job.job_id, number
    try:
        result = run_job(
            hydra_context=launcher.hydra_context,
            task_function=launcher.task_function,
            config=cfg,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    finally:
        _end_children()
    if result.status == JobStatus.FAILED:
        raise result._return_value
    return result


def _end_children() -> None:
    """Kill child processes that the run has left: they inherited the blocked signals and could outlive the job."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


def export_ranks() -> Any:
    """Set the variables by which torch and Accelerate form one group of the job's tasks; return submitit's environment.

    This replaces `accelerate launch`.
    """
    import submitit

    job = submitit.JobEnvironment()
    if job.num_tasks > 1:
        group = submitit.helpers.TorchDistributedEnvironment()
        group.master_addr = _reachable(group.master_addr)
        group.export(set_cuda_visible_devices=False, overwrite=True)
    return job


def _reachable(host: str) -> str:
    """Return `host`, or an address of the first node if the name does not resolve: torch would retry it for minutes."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        job = SlurmJob.here()
        return (job and job.launch_address) or "127.0.0.1"


# -- leaving so that Slurm starts the run again ------------------------------------------------------------------------


def _leave() -> NoReturn:
    """End this rank of a run that was asked to stop and has saved on all ranks. Rank 0 requeues the job if it should restart.

    The job must be requeued if Slurm preempts it or its time limit is near, and not if it was cancelled.
    """
    job = SlurmJob.here()
    assert job, "a run on a node has a Slurm job"
    marks, warned = _marks(job), signal.SIGUSR2 in signal.sigpending()
    if job.rank:
        with suppress(OSError):  # a full disk: rank 0 then waits a little for nothing
            _mark(marks[job.rank], warned)
        os._exit(0)  # a failing exit code would make srun kill rank 0
    _await(marks[1:])
    warned = warned or any(mark.with_suffix(WARNED).exists() for mark in marks)
    for mark in marks:
        mark.unlink(missing_ok=True)
        mark.with_suffix(WARNED).unlink(missing_ok=True)
    state, preempted = _job_state(job)
    _say(f"asked to stop in state {state}{' by preemption' if preempted else ''}")
    if state == "RUNNING" and (preempted or warned):
        _requeue(job)
    os._exit(INTERRUPTED)


def _marks(job: SlurmJob) -> list[Path]:
    """Return, by rank, the files by which the ranks tell rank 0 that they have ended all processes that they started."""
    import submitit

    own = submitit.JobEnvironment()
    names = [f".left-{own.job_id}-{job.restart_count}-{rank}" for rank in range(own.num_tasks)]
    return [own.paths.folder / name for name in names]


def _mark(mark: Path, warned: bool) -> None:
    """Tell rank 0 that this rank has ended, by empty files: these may fit on a full disk."""
    if warned:
        mark.with_suffix(WARNED).touch()
    mark.touch()


def _say(text: str) -> None:
    """Print to the log. On a full disk say nothing: the job must still be requeued."""
    with suppress(OSError):
        print(text, flush=True)


def _await(marks: list[Path]) -> None:
    """Wait for the other ranks, up to WAIT_FOR_OTHERS_S: a requeue kills them, and would orphan their child processes."""
    until = time.monotonic() + WAIT_FOR_OTHERS_S
    while not all(mark.exists() for mark in marks) and time.monotonic() < until:
        time.sleep(0.05)


def _job_state(job: SlurmJob) -> tuple[str, bool]:
    """Ask scontrol for the job's state and whether it is being preempted.

    Together with the signal that arrived this says why the run must leave:

    | state   | preempted | signal | meaning                                     | requeue? |
    |---------|-----------|--------|---------------------------------------------|----------|
    | RUNNING | any       | USR2   | time limit near, or preemption announced    | yes      |
    | RUNNING | yes       | TERM   | preemption                                  | yes      |
    | RUNNING | no        | TERM   | another rank failed                         | no       |
    | other   | any       | any    | cancelled, or Slurm requeues the job itself | no       |

    Retry until scontrol answers: a job that exits without this answer would never be restarted.
    """
    while (shown := _scontrol("-o", "show", "job", job.name)).returncode:
        time.sleep(ASK_AGAIN_S)
    fields = dict(re.findall(r"(\w+)=(\S+)", shown.stdout))
    return fields["JobState"], fields.get("PreemptTime", "None") not in ("None", "N/A")


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        command = ["scontrol", *arguments]
        return subprocess.run(command, env=slurm.environment(), capture_output=True, text=True, timeout=SCONTROL_S)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 1, "", "scontrol gives no answer")


def _requeue(job: SlurmJob) -> NoReturn:
    """Requeue the job, and retry until scontrol accepts: a job that exits without a requeue would never come back.

    If the grace time runs out meanwhile, Slurm kills the job, which may then still be restarted.
    """
    printed = ""
    while (answer := _scontrol("requeue", job.name)).returncode:
        if answer.stderr != printed:
            printed = answer.stderr
            _say(f"{printed.strip()}; asking again until Slurm ends the job")
        time.sleep(ASK_AGAIN_S)
    _say("requeued")
    os._exit(0)
