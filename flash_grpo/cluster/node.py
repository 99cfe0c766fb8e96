"""What a run's own process does: on this machine or on a node, in each of its ranks."""

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
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

from flash_grpo.process_exit import end_at_once

INTERRUPTED = 130  # the exit code of a run that was asked to stop, has saved on all ranks, and can be continued
WAIT_FOR_OTHERS_S = 10
ASK_AGAIN_S, SCONTROL_S = 3, 30
WARNED = "left after USR2"


def run_here(launcher: Launcher, cfg: DictConfig, number: int, singletons: Any, gpus: str) -> JobReturn:
    """A run on this machine. Until it handles SIGTERM itself, being stopped ends it as a Ctrl-C would."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return _run(launcher, cfg, number, singletons)


def run_on_node(launcher: Launcher, cfg: DictConfig, number: int, singletons: Any) -> JobReturn:
    """A run under Slurm. SIGTERM and USR2 are blocked since before Python began: they wait until the run looks
    (`signal.sigpending`), whatever it does meanwhile, and the processes that it starts do not die of them."""
    _forget_earlier_starts()
    end_at_once(1)  # after submitit has written down what came of it, see below
    try:
        result = _run(launcher, cfg, number, singletons)
    except SystemExit as left:
        if left.code == INTERRUPTED:
            _leave()
        end_at_once(left.code if isinstance(left.code, int) else 1)
        raise
    end_at_once(0)
    return result


def run_again(point: str) -> JobReturn:
    """What was submitted before, from its pickle, in a job of its own."""
    import submitit

    return submitit.core.utils.DelayedSubmission.load(point).result()


def _forget_earlier_starts() -> None:
    """A start that died with its node may have left a result, which the launcher would take for this one's."""
    import submitit

    submitit.JobEnvironment().paths.result_pickle.unlink(missing_ok=True)


def _run(launcher: Launcher, cfg: DictConfig, number: int, singletons: Any) -> JobReturn:
    job = _export_ranks()
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
    if result.status == JobStatus.FAILED:  # Hydra keeps the exception to itself; raised, it reaches the log and Slurm
        raise result._return_value
    return result


def _end_children() -> None:
    """Workers and servers that the run started and left: they were shielded from the signals, and end with it."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _export_ranks() -> Any:
    """Several tasks form one group without `accelerate launch`: torch and Accelerate read these variables."""
    import submitit

    job = submitit.JobEnvironment()
    if job.num_tasks > 1:
        group = submitit.helpers.TorchDistributedEnvironment()
        group.master_addr = _reachable(group.master_addr)
        group.export(set_cuda_visible_devices=False, overwrite=True)
    return job


def _reachable(host: str) -> str:
    """Torch would try in vain for minutes where a name does not resolve; srun runs on the first node."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


# -- leaving so that Slurm starts the run again ------------------------------------------------------------------------


def _leave() -> NoReturn:
    """After an interrupted run has saved on all ranks: rank 0 has Slurm start the job again, where that is meant."""
    left, warned = _left(), signal.SIGUSR2 in signal.sigpending()
    if os.environ.get("SLURM_PROCID", "0") != "0":
        _note(left[int(os.environ["SLURM_PROCID"])], WARNED if warned else "left")
        os._exit(0)  # a failing exit code would take rank 0 along
    _await(left[1:])
    warned = warned or any(file.exists() and file.read_text() == WARNED for file in left)
    for file in left:
        file.unlink(missing_ok=True)
    state, preempted = _job_state()
    print(f"asked to stop in state {state}{' by preemption' if preempted else ''}", flush=True)
    if state == "RUNNING" and (preempted or warned):
        _requeue()
    os._exit(INTERRUPTED)


def _left() -> list[Path]:
    """By rank: the files that say, to rank 0, that the rank has ended what this start began."""
    import submitit

    job, start = submitit.JobEnvironment(), os.environ.get("SLURM_RESTART_COUNT", "0")
    return [job.paths.folder / f".left-{job.job_id}-{start}-{rank}" for rank in range(job.num_tasks)]


def _note(file: Path, text: str) -> None:
    aside = file.with_suffix(".aside")
    aside.write_text(text)
    aside.rename(file)


def _await(files: list[Path]) -> None:
    """A requeue kills the other ranks, and would orphan the processes that these have not ended yet."""
    until = time.monotonic() + WAIT_FOR_OTHERS_S
    while not all(file.exists() for file in files) and time.monotonic() < until:
        time.sleep(0.05)


def _job_state() -> tuple[str, bool]:
    """RUNNING with USR2: a time limit's warning, or a preemption's. RUNNING, preempted: SIGTERM was a preemption.
    RUNNING with SIGTERM alone: another rank has failed. Anything else: cancelled, or Slurm starts it again itself.

    Whoever left without knowing would not be started again, so a controller that does not answer is asked for ever.
    """
    while (shown := _scontrol("-o", "show", "job", _job())).returncode:
        time.sleep(ASK_AGAIN_S)
    fields = dict(re.findall(r"(\w+)=(\S+)", shown.stdout))
    return fields["JobState"], fields.get("PreemptTime", "None") not in ("None", "N/A")


def _scontrol(*arguments: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=SCONTROL_S)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 1, "", "scontrol gives no answer")


def _job() -> str:
    """An array's element by its own name: its SLURM_JOB_ID may be the array's, and would requeue all of it."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array else os.environ["SLURM_JOB_ID"]


def _requeue() -> NoReturn:
    """A job that is killed in its grace time may come back, one that exits does not: it is asked for until it is had."""
    told = ""
    while (asked := _scontrol("requeue", _job())).returncode:
        if asked.stderr != told:
            told = asked.stderr
            print(f"{told.strip()}; asked again until Slurm ends the job", flush=True)
        time.sleep(ASK_AGAIN_S)
    print("requeued", flush=True)
    os._exit(0)
