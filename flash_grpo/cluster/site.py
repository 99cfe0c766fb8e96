"""Refuse a sweep that needs something which this site's Slurm lacks, or that sbatch would accept but Slurm never start."""

import getpass
import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

from flash_grpo.cluster import slurm
from flash_grpo.cluster.gpus import refuse_gpus
from flash_grpo.cluster.refusal import refuse

log = logging.getLogger(__name__)
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sinfo")


def refuse_what_cannot_run(params: Mapping[str, Any]) -> None:
    """Refuse a site without Slurm, and launcher settings that contradict each other or the site.

    params: the launcher's settings, `hydra.launcher`.
    """
    _refuse_a_site_without_slurm()
    limit, delay = 60 * params["timeout_min"], params["signal_delay_s"]
    if delay >= limit:
        refuse(f"hydra.launcher: signal_delay_s={delay} leaves nothing of timeout_min={limit // 60} to run in")
    refuse_gpus(params)
    try:
        if params["account"]:
            _refuse_an_unknown_account(params["account"])
        _refuse_too_long_a_limit(params["partition"] or os.environ.get("SBATCH_PARTITION"), params["timeout_min"])
    except slurm.NoSlurmError as error:
        refuse(str(error))
    _warn_without_accounting()


def _refuse_a_site_without_slurm() -> None:
    missing = [name for name in COMMANDS if not shutil.which(name)]
    if missing:
        refuse(f"{', '.join(missing)}: not found on this machine, so there is no Slurm here (slurm=local needs none)")


def _warn_without_accounting() -> None:
    try:
        slurm.output_of("sacct", "-nX", "-S", "now")
    except slurm.NoSlurmError as error:
        log.warning("Slurm's accounting does not answer (%s): no bill; a run's own files tell how it ended", error)


def _refuse_an_unknown_account(account: str) -> None:
    """Refuse an account that is not the user's, if sacctmgr can tell. sbatch may accept it, but the job would never start."""
    mine = (f"user={getpass.getuser()}", f"account={account}", "format=account")
    try:
        known = slurm.output_of("sacctmgr", "-nP", "show", "assoc", *mine)
    except slurm.NoSlurmError:  # not on this machine, not for everybody, or without a database: sbatch decides
        return
    if not known.strip():
        refuse(f"hydra.launcher.account={account}: Slurm's accounting knows no such account of yours")


def _refuse_too_long_a_limit(partition: str | None, minutes: int) -> None:
    """Refuse a time limit above the partition's. partition: None for the default one. sbatch refuses unknown ones itself."""
    chosen = ["-p", partition] if partition else []
    for line in slurm.output_of("sinfo", "-h", "-o", "%P|%l", *chosen).splitlines():
        name, longest = line.split("|")
        if (partition or name.endswith("*")) and minutes > slurm_minutes(longest):
            refuse(
                f"hydra.launcher.timeout_min={minutes}: partition {name.rstrip('*')} allows {slurm_minutes(longest):.0f}; a "
                "run that reaches its time limit goes on in the next start"
            )


def slurm_minutes(limit: str) -> float:
    """Convert Slurm's [days-]hours:minutes:seconds to minutes; 'infinite' to infinity.

    >>> [slurm_minutes(limit) for limit in ("10:00", "1:00:00", "1-00:00:00", "infinite")]
    [10.0, 60.0, 1440.0, inf]
    """
    if not limit[:1].isdigit():
        return float("inf")
    days, _, clock = limit.rpartition("-")
    seconds = sum(int(part) * 60**power for power, part in enumerate(reversed(clock.split(":"))))
    return int(days or 0) * 1440 + seconds / 60
