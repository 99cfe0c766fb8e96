"""Start, find and end the daemons of the development cluster. Part of tools/dev_cluster."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev_cluster_config import DB_SOCKET, DIR, LOG, MUNGE_SOCKET, NODES, PORT, PRIVATE, RUN, USER, secret


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A daemon, found by its pid file. A process is signalled only if its program is the daemon's."""

    name: str
    program: str

    @property
    def pid_file(self) -> Path:
        return RUN / f"{self.name}.pid"

    def pid(self) -> int | None:
        """Return the daemon's process id; None if it does not run or another program has taken the id."""
        try:
            pid = int(self.pid_file.read_text())
            return pid if Path(f"/proc/{pid}/comm").read_text().strip() == self.program else None
        except (OSError, ValueError):
            return None

    def start(self, command: str, ready: Callable[[], bool], seconds: float) -> None:
        """Start the daemon if it does not run, and wait until it is `ready`; fail after `seconds`."""
        if self.pid():
            return
        with open(LOG / f"{self.name}.out", "ab") as out:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            subprocess.Popen(shlex.split(command), start_new_session=True, **streams)
        if not eventually(lambda: self.pid() is not None and ready(), seconds):
            fail(f"{self.name} did not come up: see {LOG}/{self.name}.*")

    def signal(self, number: int) -> None:
        pid = self.pid()
        if pid:
            os.kill(pid, number)

    def end(self, seconds: float = 20) -> None:
        """Send SIGTERM, wait for the end, and send SIGKILL after `seconds`."""
        self.signal(signal.SIGTERM)
        if not eventually(lambda: self.pid() is None, seconds):
            say(f"{self.name} did not end in {seconds} s and is killed")
            self.signal(signal.SIGKILL)
        self.pid_file.unlink(missing_ok=True)


MUNGE = Daemon(name="munged", program="munged")
DATABASE = Daemon(name="mariadbd", program="mariadbd")
ACCOUNTING = Daemon(name="slurmdbd", program="slurmdbd")
CONTROLLER = Daemon(name="slurmctld", program="slurmctld")


def node(name: str) -> Daemon:
    return Daemon(name=f"slurmd-{name}", program="slurmd")


def nodes_started() -> list[Daemon]:
    return [node(path.stem.removeprefix("slurmd-")) for path in sorted(RUN.glob("slurmd-*.pid"))]


def start_munge() -> None:
    options = f"--key-file={PRIVATE}/munge.key --log-file={PRIVATE}/munged.log --seed-file={PRIVATE}/munged.seed"
    credential = f"munge -S {MUNGE_SOCKET} -n | unmunge -S {MUNGE_SOCKET}"
    command = f"munged {options} --socket={MUNGE_SOCKET} --pid-file={MUNGE.pid_file} --num-threads=2"
    MUNGE.start(command, lambda: works("sh", "-c", credential), 10)


def start_database() -> None:
    data, log = DIR / "db", LOG / "mariadbd.log"
    size = "--innodb-buffer-pool-size=64M --innodb-log-file-size=48M"
    if not (data / "mysql").exists():
        as_us = f"--auth-root-authentication-method=socket --auth-root-socket-user={USER} --user={USER} --skip-test-db"
        run("mariadb-install-db", *shlex.split(f"--no-defaults --force --datadir={data} {as_us} {size}"))
    options = f"--user={USER} --datadir={data} --socket={DB_SOCKET} --pid-file={DATABASE.pid_file} --log-error={log}"
    small = f"{size} --performance-schema=OFF --skip-log-bin --innodb-flush-log-at-trx-commit=2"
    network = f"--bind-address=127.0.0.1 --port={PORT + 3} --skip-name-resolve --innodb-lock-wait-timeout=900"
    command = f"mariadbd --no-defaults {options} {small} {network}"
    DATABASE.start(command, lambda: works(*SQL, "select 1"), 60)
    password = secret(PRIVATE / "database-password")
    run(*SQL, "create database if not exists slurm_acct_db")
    run(*SQL, f"create or replace user slurm@127.0.0.1 identified by '{password}'")
    run(*SQL, "grant all on slurm_acct_db.* to slurm@127.0.0.1")


SQL = ("mariadb", "--no-defaults", f"--socket={DB_SOCKET}", f"--user={USER}", "--execute")


def start_accounting() -> None:
    """Start slurmdbd and register the cluster, which must precede the first slurmctld: else its jobs have no GPUs."""
    ACCOUNTING.start("slurmdbd", lambda: listens(PORT + 2), 30)
    for kind, name, options in (
        ("cluster", "dev", ""),
        ("account", "proj", "Description=dev Organization=dev"),
        ("user", USER, "account=proj"),
    ):
        if name not in run("sacctmgr", "-nP", "show", kind, f"format={kind}").split():
            run("sacctmgr", "-i", "-Q", "add", kind, name, *options.split())


def start_nodes() -> None:
    for i in range(1, NODES + 1):
        node(f"n{i}").start(f"slurmd -N n{i}", lambda: True, 10)
    if not eventually(lambda: usable_nodes() == NODES, 30):
        fail(f"not all nodes are ready:\n{run('sinfo', '-N', '-l')}{run('sinfo', '-R')}")


def usable_nodes() -> int:
    states = run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%T").split()
    return sum(state in ("idle", "mixed", "allocated", "completing") for state in states)


# -- helpers ---------------------------------------------------------------------------------------------------------


def run(*command: str) -> str:
    """Return what a command printed; end this program with its error if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    if done.returncode:
        fail(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def works(*command: str) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30).returncode == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def eventually(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def say(text: str) -> None:
    print(f"dev_cluster: {text}", file=sys.stderr)


def fail(text: str) -> None:
    say(f"error: {text}")
    sys.exit(1)
