"""The faults of tools/fault_campaign: each strikes one run, at a moment that the campaign has chosen."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from fault_campaign_victim import Victim, called

from flash_grpo.run import checkpoint

CLUSTER = Path(__file__).resolve().with_name("dev_cluster")


def kill_rank(run: Victim, chance: random.Random) -> None:
    chance.choice(run.rank_processes()).kill()


def signal_rank(run: Victim, chance: random.Random) -> None:
    before = run.restarts()
    chance.choice(run.rank_processes()).send_signal(signal.SIGUSR2)
    run.until_restarted(before)


def kill_srun(run: Victim, chance: random.Random) -> None:
    chance.choice(run.processes(lambda line: bool(line) and line[0].endswith("srun"))).kill()


def kill_step(run: Victim, chance: random.Random) -> None:
    _kill_daemon_of_step(f"[{run.raw_job()}.0]", chance)


def kill_batch_step(run: Victim, chance: random.Random) -> None:
    _kill_daemon_of_step(f"[{run.raw_job()}.batch]", chance)


def _kill_daemon_of_step(step: str, chance: random.Random) -> None:
    found = [process for process in psutil.process_iter(["cmdline"]) if step in " ".join(process.info["cmdline"] or [])]
    chance.choice([process for process in found if "slurmstepd" in " ".join(process.info["cmdline"])]).kill()


def preempt(run: Victim, chance: random.Random) -> None:
    node, before = chance.choice(run.nodes()), run.restarts()
    called("sbatch", "-Q", "-p", "gpu", "--exclusive", "-w", node, "-o", "/dev/null", "--wrap", "sleep 1")
    run.until_restarted(before)


def requeue(run: Victim, chance: random.Random) -> None:
    called("scontrol", "requeue", run.job())


def requeue_and_kill(run: Victim, chance: random.Random) -> None:
    """Requeue the run and kill a rank in its save."""
    ranks = run.rank_processes()
    called("scontrol", "requeue", run.job())
    time.sleep(chance.uniform(0.0, 1.0))
    with suppress(Exception):
        chance.choice(ranks).kill()


def node_down(run: Victim, chance: random.Random) -> None:
    node = chance.choice(run.nodes())
    called("scontrol", "update", f"nodename={node}", "state=down", "reason=fault_campaign")
    time.sleep(chance.uniform(1, 4))
    for _ in range(30):
        if "down" not in called("sinfo", "-h", "-n", node, "-o", "%T"):
            return
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
        time.sleep(1)


def restart_daemon(run: Victim, chance: random.Random) -> None:
    """Kill a daemon, leave it dead for some seconds, and start it again."""
    name = chance.choice(["slurmctld", "slurmdbd", f"slurmd-{chance.choice(run.nodes())}"])
    file = Path(os.environ["DEV_CLUSTER_DIR"], "run", f"{name}.pid")
    os.kill(int(file.read_text()), signal.SIGKILL)
    file.unlink()
    time.sleep(chance.uniform(1, 6))
    for _ in range(5):
        if not subprocess.run([CLUSTER, "up"], capture_output=True).returncode:
            return


def time_limit(run: Victim, chance: random.Random) -> None:
    before, job = run.restarts(), run.job()
    elapsed = int(called("squeue", "-h", "-j", job, "-o", "%M").split(":")[-2])  # whole minutes, of MM:SS
    called("scontrol", "update", f"jobid={job}", f"timelimit={elapsed + 1}")
    run.until_restarted(before)
    called("scontrol", "update", f"jobid={job}", "timelimit=60", tries=3)


def fill_disk(run: Victim, chance: random.Random) -> None:
    """Fill the run's own file system, wait until the run has noticed, and make room."""
    filler = run.directory / "filler"
    with suppress(OSError), open(filler, "ab", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    os.truncate(filler, max(0, filler.stat().st_size - chance.choice([0, 100_000, 1_000_000])))
    try:
        run.wait(run.has_ended)
    finally:
        filler.unlink()


def flip_bit(run: Victim, chance: random.Random) -> None:
    """Requeue the run and, while it waits, flip a bit in a file of its newest checkpoint."""
    called("scancel", "--signal=USR2", run.job())
    run.wait(lambda: run.state() == "requeued" or run.has_ended())
    newest = run.directory / "checkpoints" / checkpoint.names(run.directory)[0]
    path = chance.choice(sorted(newest.glob("*.pt")))
    with open(path, "r+b") as file:
        place = chance.randrange(path.stat().st_size)
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))


Fault = Callable[[Victim, random.Random], None]
KINDS: dict[str, Fault] = {
    "SIGKILL of a rank": kill_rank,
    "SIGKILL of srun": kill_srun,
    "SIGKILL of the step's slurmstepd": kill_step,
    "SIGKILL of the batch step's slurmstepd": kill_batch_step,
    "USR2 to one rank": signal_rank,
    "preemption": preempt,
    "scontrol requeue": requeue,
    "scontrol requeue and SIGKILL in the save": requeue_and_kill,
    "node down": node_down,
    "a daemon killed and started again": restart_daemon,
    "time limit": time_limit,
    "full disk": fill_disk,
    "flipped bit in the newest checkpoint": flip_bit,
}
