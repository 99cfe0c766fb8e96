"""Tell which settings define a run: change one and it is a different run. Standard library only.

SETTINGS lists the exceptions, each with its reason. A key that is not listed defines the run, appears in the run's name if
the command line sets it, and separates runs that differ in it into different arms.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a key, with all keys below it, means for a run."""

    key: str
    reason: str
    identity: bool = False
    """True if another value makes it a different run."""

    in_name: bool = False
    """True if the key appears in the run's name when the command line sets it."""

    in_arm: bool = False
    """True if runs that differ in this key are different arms, which are not averaged together."""


SETTINGS = (
    Setting(key="study", reason="where the run lies"),
    Setting(key="runs_root", reason="where the run lies"),
    Setting(key="run_name", reason="where the run lies"),
    Setting(key="detach", reason="how the sweep is launched", in_arm=True),
    Setting(key="plan", reason="asks what the run would cost; nothing runs", in_arm=True),
    Setting(key="preflight", reason="asks whether the run would work; no run is started", in_arm=True),
    Setting(key="planning", reason="read by plan=true alone", in_arm=True),
    Setting(key="track", reason="how the sweep is watched"),
    Setting(key="budget", reason="how far the run goes; a larger one continues it"),
    Setting(key="stop_when", reason="how far the run goes; without it a run that it stopped goes on"),
    Setting(key="checkpoint", reason="how often it is saved"),
    Setting(key="measure", reason="read by flash_grpo.mechanism alone", in_arm=True),
    Setting(key="diagnose", reason="read by flash_grpo.diagnose alone", in_arm=True),
    Setting(key="server", reason="read by flash_grpo.serve alone", in_arm=True),
    Setting(key="bench", reason="read by flash_grpo.bench alone", in_arm=True),
    Setting(key="rollout.batch", reason="how much is computed at once"),
    Setting(key="training.batch", reason="how much is computed at once"),
    Setting(key="evaluation.sampler.batch", reason="how much is computed at once"),
    Setting(key="evaluation.held_out", reason="trains nothing, but records go on with it", identity=True, in_name=True),
    Setting(
        key="prompts.train", reason="where the texts lie; the texts have a hash of their own", in_name=True, in_arm=True
    ),
    Setting(
        key="prompts.test", reason="where the texts lie; the texts have a hash of their own", in_name=True, in_arm=True
    ),
    Setting(key="optim.lr_of", reason="a table; the rate taken from it is optim.optimizer.lr", in_name=True),
    Setting(key="seed", reason="the name ends with it; an arm is averaged over it", identity=True),
    Setting(key="optim.lora.seed", reason="follows the seed", identity=True, in_name=True),
    Setting(
        key="device", reason="the result is the same to float noise; a run does not change it midway", identity=True
    ),
    Setting(
        key="threads", reason="the result is the same to float noise; a run does not change it midway", identity=True
    ),
    Setting(key="slurm", reason="resources, which only the launcher reads", identity=True),
)
ADDED: dict[str, object] = {
    "rollout.train_fraction": 1.0,
    "method.tree": None,
    "rollout.guidance": None,
    "training.guidance": None,
    "evaluation.guidance": None,
    "optim.lora.init_from": None,
    "optim.lora.kl_base": "model",
}
"""Keys that configurations of earlier versions lack, each with the value that means what those versions did."""

# groups left out of the name, because the method's name and the keys that a sweep sets say which option was chosen
CHOICES_IN_NAME = ("sweeps", "method", "ablations")
AT_ONCE = tuple(setting.key for setting in SETTINGS if setting.reason == "how much is computed at once")
PROMPT_FILES = ("prompts.train", "prompts.test")
SERVERS = (
    "batch",
    "urls",
    "timeout",
    "give_up_after",
    "max_wait",
)  # keys of a reward, also in a composite, that say where it is computed


def setting_of(key: str) -> Setting | None:
    """Return the entry of SETTINGS for a dotted key or for a section that contains it; None if there is none."""
    if is_of_servers(key):
        return Setting(key=key, reason="where the reward is computed")
    return next((setting for setting in SETTINGS if f"{key}.".startswith(f"{setting.key}.")), None)


def is_identity(key: str) -> bool:
    """Return True if changing this setting makes it a different run, so that an existing run directory is refused.

    >>> [key for key in ("seed", "budget.pflop", "reward.rewards.hpsv3.urls") if is_identity(key)]
    ['seed']
    """
    setting = setting_of(key)
    return setting is None or setting.identity


def is_as_before(key: str, value: object) -> bool:
    """Return True if the value means what runs did before this key existed, so that their configurations are equal to it."""
    return key in ADDED and ADDED[key] == value


def is_in_name(key: str) -> bool:
    """Return True if this setting appears in the run's name when the command line sets it."""
    if key.split(".")[0] == "hydra" or key in CHOICES_IN_NAME:
        return False
    setting = setting_of(key)
    return setting is None or setting.in_name


def is_in_arm(key: str) -> bool:
    """Return True if runs that differ in this setting are different arms of a study."""
    setting = setting_of(key)
    return setting is None or setting.in_arm


def is_of_servers(key: str) -> bool:
    """Return True if this setting says where a reward is computed."""
    return key.startswith(("reward.", "evaluation.held_out.")) and key.rpartition(".")[2] in SERVERS


def comparable(key: str, value: object) -> object:
    """Return the value to compare for a run's identity. Of a `_target_` in this package only the last part counts.

    So a class or function may move to another module without making existing runs different.

    >>> comparable("method._target_", "flash_grpo.algorithm.method.Method")
    'flash_grpo:Method'
    """
    if key.endswith("_target_") and isinstance(value, str) and value.startswith("flash_grpo."):
        return f"flash_grpo:{value.rpartition('.')[2]}"
    return value


def directory_name(key: str, value: object) -> None:
    """Raise ValueError if the value of `study` or `run_name` cannot name a directory of its own, on any file system."""
    name = str(value)
    why = ""
    if value is None or not name:
        why = "must not be empty"
    elif not isinstance(value, str | int | float):
        why = "must be one name, not a section or a list"
    elif "/" in name or name.startswith("."):
        why = "must be the name of a directory, without a / and not beginning with a dot"
    elif not name.isprintable():
        why = "must not hold control characters"
    elif len(name.encode(errors="replace")) > LONGEST_NAME:
        why = f"must have at most {LONGEST_NAME} bytes"
    if why:
        raise ValueError(f"{key}={name if name.isprintable() and len(name) <= 80 else ascii(name)[:80]}: {why}")


LONGEST_NAME = 255  # bytes, of the usual file systems
