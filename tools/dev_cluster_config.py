"""Read the settings of the development cluster, and write the files that Slurm reads. Part of tools/dev_cluster."""

import os
import pwd
import socket
from pathlib import Path


def setting(name: str, default: object) -> str:
    return os.environ.get(f"DEV_CLUSTER_{name}", str(default))


USER = pwd.getpwuid(os.getuid()).pw_name
DIR = Path(setting("DIR", f"{os.environ.get('TMPDIR', '/tmp')}/dev_cluster-{USER}"))
NODES = int(setting("NODES", 2))
GPUS, GPU_TYPE = int(setting("GPUS", 8)), setting("GPU_TYPE", "a100")
PORT = int(setting("PORT", 26817))
GRACE, KILL_WAIT = int(setting("GRACE", 5)), int(setting("KILL_WAIT", 10))
ETC, RUN, LOG, SPOOL, DEV, PRIVATE = (DIR / name for name in ("etc", "run", "log", "spool", "dev", "private"))
MUNGE_SOCKET, DB_SOCKET = RUN / "munge.socket", RUN / "db.socket"

SLURM_CONF = """\
ClusterName=dev
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire={requeue_wait}
StateSaveLocation={spool}/slurmctld
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmctldLogFile={log}/slurmctld.log
SlurmdLogFile={log}/slurmd-%n.log
PlugStackConfig={etc}/plugstack.conf

# allows several slurmd on one host, without cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=sched_interval=5,bf_interval=2,batch_sched_delay=0
KillWait={kill_wait}
MinJobAge=3600
MaxArraySize={max_array}
MaxJobCount=20000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preemption_signal}

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={munge}
AccountingStorageTRES=gres/gpu
{enforcement}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5

NodeName=DEFAULT CPUs={cpus} RealMemory={memory} Gres=gpu:{gpu_type}:{gpus}
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports}
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=preemptible Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=short Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=10
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser={user}
PidFile={run}/slurmdbd.pid
LogFile={log}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""

# slurmd 22.05 loads a cgroup plugin even if nothing uses it; the one for v1 needs neither a mount nor systemd.
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


def numbered(first: int, last: int) -> str:
    """Format a range as Slurm does: [1-4], or 1 for a range of one."""
    return str(first) if first == last else f"[{first}-{last}]"


def values() -> dict[str, object]:
    """Return what fills the placeholders of the configuration files."""
    return {
        "host": socket.gethostname().split(".")[0],
        "user": USER,
        "munge": MUNGE_SOCKET,
        "etc": ETC,
        "run": RUN,
        "log": LOG,
        "spool": SPOOL,
        "port": PORT,
        "dbd_port": PORT + 2,
        "db_port": PORT + 3,
        "nodes": f"n{numbered(1, NODES)}",
        "node_ports": numbered(PORT + 101, PORT + 100 + NODES),
        "cpus": setting("CPUS", 16),
        "memory": setting("MEMORY_MB", 24000),
        "gpus": GPUS,
        "gpu_type": GPU_TYPE,
        "grace": GRACE,
        "kill_wait": KILL_WAIT,
        "requeue_wait": setting("REQUEUE_WAIT", 10),
        "max_array": setting("MAX_ARRAY", 10001),
        "enforcement": f"AccountingStorageEnforce={setting('ENFORCE', '')}" if setting("ENFORCE", "") else "",
        "preemption_signal": "SlurmctldParameters=preempt_send_user_signal" if setting("USER_SIGNAL", 0) == "1" else "",
        "password": secret(PRIVATE / "database-password"),
    }


def secret(path: Path) -> str:
    """Return the secret in a file, 64 hex digits; create the file if it is missing."""
    if not path.exists():
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(os.urandom(512).hex())  # munge's key must be at least this long
    return path.read_text()[:64]


def configure() -> bool:
    """Write the cluster's directory. Return True if slurm.conf has changed."""
    nodes = [SPOOL / f"n{i}" for i in range(1, NODES + 1)]
    for folder in (ETC, RUN, LOG, DEV, PRIVATE, SPOOL / "slurmctld", *nodes):
        folder.mkdir(parents=True, exist_ok=True)
    DIR.chmod(0o755)  # munge requires that all users can enter its socket's directory
    PRIVATE.chmod(0o700)
    secret(PRIVATE / "munge.key")
    for i in range(GPUS):  # Slurm sets CUDA_VISIBLE_DEVICES only for character devices
        if not (DEV / f"gpu{i}").exists():
            (DEV / f"gpu{i}").symlink_to("/dev/null")
    filled = values()
    write(
        ETC / "gres.conf",
        f"NodeName={filled['nodes']} Name=gpu Type={GPU_TYPE} File={DEV}/gpu{numbered(0, GPUS - 1)}\n",
    )
    write(ETC / "cgroup.conf", CGROUP_CONF)
    write(ETC / "plugstack.conf", "")
    write(ETC / "slurmdbd.conf", SLURMDBD_CONF.format(**filled), mode=0o600)
    return write(ETC / "slurm.conf", SLURM_CONF.format(**filled))


def write(path: Path, text: str, mode: int = 0o644) -> bool:
    """Write a file. Return True if its text has changed."""
    before = path.read_text() if path.exists() else None
    path.write_text(text)
    path.chmod(mode)
    return text != before
