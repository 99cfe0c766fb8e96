"""Say in words why a job waits or why it ended, from Slurm's one-word reasons and states."""

from datetime import datetime

from flash_grpo.cluster.slurm import NEVER, Queued, seconds_since_1970

WAITS = {
    "None": "Slurm has not looked at it yet",
    "Resources": "no free nodes",
    "Priority": "others come first",
    "BeginTime": "may start again soon",
    "JobArrayTaskLimit": "as many of this array run as hydra.launcher.array_parallelism allows",
    "Dependency": "waits for another job",
    "Licenses": "waits for a licence",
    "DependencyNeverSatisfied": "waits for a job that has failed: cancel it",
    "JobHeldUser": "held by you: scontrol release {job}",
    "JobHeldAdmin": "held by an administrator",
    "Reservation": "waits for its reservation",
    "PartitionTimeLimit": "longer than the partition allows: lower hydra.launcher.timeout_min",
    "PartitionNodeLimit": "more nodes than the partition allows: lower hydra.launcher.nodes",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "BadConstraints": "no node has what it asks for",
    "launch failed requeued held": "could not be launched and is held: scontrol release {job}",
}
WAITS_BY_PREFIX = {  # reasons with many endings, QOSMaxGRESPerUser
    "QOS": "a limit of the QOS",
    "Max": "a limit of the account",
    "Assoc": "a limit of the account",
    "ReqNodeNotAvail": "its nodes are down or reserved",
    "Nodes required": "its nodes are down or reserved",
}
ENDS = {  # states of the accounting that explain themselves, without the run's own message or log
    "PREEMPTED": "was preempted",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory: raise hydra.launcher.mem_gb",
    "TIMEOUT": "killed at its time limit before it had saved: raise hydra.launcher.signal_delay_s",
    "REQUEUED": "saved and left: preempted, or at its time limit",
    "DEADLINE": "past its deadline",
    "BOOT_FAIL": "its node did not boot",
    "COMPLETED": "Slurm says COMPLETED, but the run had not ended",
}


def why_it_waits(job: Queued) -> str:
    """Explain why a queued job waits and, if Slurm expects a time, when it will start. A reason without words is shown."""
    kind = next((words for prefix, words in WAITS_BY_PREFIX.items() if job.reason.startswith(prefix)), "")
    reason = WAITS.get(job.reason, f"{kind} ({job.reason})" if kind else job.reason)
    expected = "" if job.begin in NEVER else f", expected {local_time(job.begin, '%Y-%m-%d %H:%M:%S')}"
    return reason.format(job=job.job) + expected


def local_time(time: str, form: str) -> str:
    """Convert a time that Slurm printed, UTC, to the reader's zone, in the format `form` of strftime."""
    return datetime.fromtimestamp(seconds_since_1970(time)).strftime(form)
