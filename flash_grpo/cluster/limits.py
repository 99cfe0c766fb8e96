"""Read how many jobs, and how long ones, this site's Slurm takes from the user: MaxArraySize, MaxSubmitJobs, MaxWall."""

import getpass
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flash_grpo.cluster import slurm
from flash_grpo.cluster.refusal import refuse
from flash_grpo.cluster.site import slurm_minutes

# sacctmgr's columns, each with the name under which sacctmgr sets the limit
OF_ASSOCIATION = {"MaxSubmitJobs": "MaxSubmitJobs", "GrpSubmitJobs": "GrpSubmitJobs", "MaxWall": "MaxWall"}
OF_QOS = {
    "MaxSubmitPU": "MaxSubmitJobsPerUser",
    "MaxSubmitPA": "MaxSubmitJobsPerAccount",
    "GrpSubmit": "GrpSubmitJobs",
    "MaxWall": "MaxWall",
}
ENFORCED = {"limits", "safe"}  # words of AccountingStorageEnforce without which the accounting's limits do not hold
USUAL_QOS = "normal"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of the site.

    name: under which Slurm sets it. owner: what has the limit. value: a number of jobs, of an array's elements, or minutes.
    account, qos: the jobs that count for it; '' for any.
    """

    name: str
    owner: str
    value: float
    account: str = ""
    qos: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.value:g} of {self.owner}"


def site_limits(params: Mapping[str, Any]) -> list[Limit]:
    """Ask Slurm for the limits that jobs with these settings of the launcher have. NoSlurmError if it does not answer.

    Limits that the accounting keeps are left out if Slurm does not enforce them or sacctmgr does not answer: then only
    sbatch's refusal tells of them.
    """
    config = dict(re.findall(r"^(\w+) *= *(.*?) *$", slurm.output_of("scontrol", "show", "config"), re.MULTILINE))
    sizes = [int(config["MaxArraySize"])] if "MaxArraySize" in config else []
    found = [Limit(name="MaxArraySize", owner="this cluster", value=size) for size in sizes]
    if shutil.which("sacctmgr") and ENFORCED & set(config.get("AccountingStorageEnforce", "").split(",")):
        found += _accounted(params, config.get("ClusterName", ""))
    return found


def _accounted(params: Mapping[str, Any], cluster: str) -> list[Limit]:
    """Ask sacctmgr for the limits of the user's association and of the QOS, the job's and the partition's."""
    user, partition = getpass.getuser(), _setting(params, "partition")
    account = _setting(params, "account") or _default_account(user)
    where, columns = (f"cluster={cluster}", f"account={account}"), ("User", "Partition", "DefaultQOS", *OF_ASSOCIATION)
    rows = _rows("assoc", where, columns)
    rows = [row for row in rows if row["User"] in ("", user) and row["Partition"] in ("", partition)]
    found = [limit for row in rows for limit in _limits(row, OF_ASSOCIATION, f"account {account}", account=account)]
    default = next((row["DefaultQOS"] for row in rows if row["User"] and row["DefaultQOS"]), USUAL_QOS)
    for qos in {_setting(params, "qos") or default, _qos_of(partition)} - {""}:
        for row in _rows("qos", (f"name={qos}",), tuple(OF_QOS)):
            found += _limits(row, OF_QOS, f"QOS {qos}", qos=qos)
    return found


def _limits(row: Mapping[str, str], names: Mapping[str, str], owner: str, **counts: str) -> list[Limit]:
    """Return the limits in a row of sacctmgr's table. counts: see `Limit.account`."""
    found = []
    for column, name in names.items():
        if row[column]:
            value = slurm_minutes(row[column]) if column == "MaxWall" else float(row[column])
            found.append(Limit(name=name, owner=owner, value=value, **counts))
    return found


def _setting(params: Mapping[str, Any], name: str) -> str:
    """Return what sbatch will take for a setting; '' if nothing names it."""
    return params[name] or params["additional_parameters"].get(name) or os.environ.get(f"SBATCH_{name.upper()}", "")


def _default_account(user: str) -> str:
    return next((row["DefaultAccount"] for row in _rows("user", (f"name={user}",), ("DefaultAccount",))), "")


def _qos_of(partition: str) -> str:
    """Return the partition's own QOS, whose limits hold for all its jobs; '' for none. partition: '' for the default one."""
    for line in slurm.output_of(
        "scontrol", "-o", "show", "partition", *([partition] if partition else [])
    ).splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        if partition or fields.get("Default") == "YES":
            return fields.get("QoS", "").replace("N/A", "")
    return ""


def _rows(kind: str, where: tuple[str, ...], columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Ask sacctmgr for a table; empty if it does not answer, as where only administrators may ask."""
    try:
        printed = slurm.output_of("sacctmgr", "-nP", "show", kind, *where, f"format={','.join(columns)}")
    except slurm.NoSlurmError:
        return []
    return [dict(zip(columns, line.split("|"), strict=True)) for line in printed.splitlines()]


# -- what they allow ---------------------------------------------------------------------------------------------------


def refuse_too_long_a_run(limits: list[Limit], minutes: int) -> None:
    """Refuse a time limit above MaxWall: Slurm would queue the job and never start it, or refuse it without the number."""
    for limit in limits:
        if limit.name == "MaxWall" and minutes > limit.value:
            refuse(
                f"hydra.launcher.timeout_min={minutes}: {limit.owner} allows {limit.value:g} (MaxWall); a run that "
                "reaches its time limit goes on in the next start"
            )


def room(limits: list[Limit]) -> tuple[int | None, Limit | None]:
    """Return how many runs one array may hold now, and the limit that says so; None if nothing limits it.

    Jobs of other users count for some limits, but are not seen by everybody: sbatch may take fewer.
    """
    sizes = [limit for limit in limits if limit.name != "MaxWall"]
    if not sizes:
        return None, None
    mine = _queued() if any(limit.name != "MaxArraySize" for limit in sizes) else []
    free = {limit: max(0, int(limit.value) - _counted(limit, mine)) for limit in sizes}
    tightest = min(sizes, key=lambda limit: free[limit])
    return free[tightest], tightest


def _queued() -> list[tuple[str, str]]:
    """Ask for account and QOS of each of the user's jobs in the queue."""
    lines = slurm.output_of("squeue", "-h", "-r", "-u", getpass.getuser(), "-O", "Account:|,QOS:|").splitlines()
    return [(account, qos) for account, qos, *_ in (line.split("|") for line in lines)]


def _counted(limit: Limit, jobs: list[tuple[str, str]]) -> int:
    if limit.name == "MaxArraySize":
        return 0
    return sum(limit.account in ("", account) and limit.qos in ("", qos) for account, qos in jobs)
