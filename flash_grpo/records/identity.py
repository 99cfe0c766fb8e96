"""Tell which settings define a run: change one and it is a different run. Standard library only."""

ELSEWHERE = ("study", "runs_root", "run_name", "detach")  # where it lies
REACH = ("budget", "checkpoint", "measure", "server", "bench")  # how far it goes, how often it is saved
AT_ONCE = ("rollout.batch", "training.batch", "evaluation.sampler.batch")  # how much is computed at once
PROMPT_FILES = ("prompts.train", "prompts.test")  # where its texts lie; the texts have a hash of their own
SERVERS = ("batch", "urls", "timeout", "give_up_after")  # of a reward, or of one in a composite: where it is computed


def is_identity(key: str) -> bool:
    """Return True if changing this setting makes it a different run, so that an existing run directory is refused.

    >>> [key for key in ("seed", "budget.pflop", "reward.rewards.hpsv3.urls") if is_identity(key)]
    ['seed']
    """
    left_out = any(f"{key}.".startswith(f"{one}.") for one in (*ELSEWHERE, *REACH, *AT_ONCE, *PROMPT_FILES))
    return not left_out and not is_of_servers(key)


def is_of_servers(key: str) -> bool:
    return key.startswith("reward.") and key.rpartition(".")[2] in SERVERS
