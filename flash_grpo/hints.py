"""Say how to write what somebody typed who knows other programs."""

import re
from itertools import takewhile
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

OTHER_NAMES = {
    "batch_size": "batch",
    "beta": "kl_weight",
    "clip_range": "ratio_clip",
    "ema_decay": "decay",
    "gpus": "gpus_per_node",
    "kl": "kl_weight",
    "kl_coeff": "kl_weight",
    "learning_rate": "lr",
    "lora_alpha": "alpha",
    "lora_rank": "rank",
    "max_grad_norm": "max_gradient_norm",
    "name": "run_name",
    "num_frames": "frames",
    "num_generations": "group_size",
    "output_dir": "runs_root",
    "random_seed": "seed",
    "sde": "noise",
}
"""What other trainers call a key of this suite."""

CONTINUES = "the same command continues a run; no key is needed"
STEPS = (
    "rollouts and their training take schedule.num_steps, evaluation takes evaluation.sampler.schedule.num_steps, and "
    "rollout.path evaluates a rollout less often"
)
GUIDANCE = (
    "did you mean model.guidance? rollout.guidance, training.guidance and evaluation.guidance set it for one phase"
)
ANSWERS = {
    **dict.fromkeys(("steps", "num_steps", "sampling_steps", "num_inference_steps", "eval_num_steps"), STEPS),
    **dict.fromkeys(("guidance", "guidance_scale", "cfg_scale"), GUIDANCE),
    "continue": CONTINUES,
    "resume": CONTINUES,
    "resume_from_checkpoint": CONTINUES,
    "gradient_accumulation_steps": "training.batch bounds memory, and training.optimizer_steps is the updates of an iteration",
    "slurm.": "slurm=NAME chooses a cluster's shape; its values are keys of hydra.launcher, as hydra.launcher.partition",
}
"""What to do instead of setting a key that ends so, or any key of a section."""

OTHER_PROGRAMS = ("bench", "diagnose", "measure", "planning", "server")  # sections that a run does not read


def as_override(option: str, following: str) -> str:
    """Return how an `--option` is written as an override. following: the argument behind it.

    >>> as_override("--seed", "3")
    'values are written seed=3, without dashes'
    """
    key, equals, value = option.lstrip("-").partition("=")
    return f"values are written {key}={value if equals else following or 'VALUE'}, without dashes"


def as_written(argument: str, following: list[str], previous: str = "") -> str:
    """Return how an argument that is no override could have been meant; empty if there is no guess.

    following, previous: the arguments around it.

    >>> as_written("seed", ["=", "3"])
    'write seed=3, without spaces'
    """
    key, equals, value = argument.partition("=")
    behind = [item for item in takewhile(lambda item: item == "=" or "=" not in item, following) if item != "="]
    whole = " ".join([argument, *behind])
    if value.endswith(",") and behind:
        return f"a list is written without spaces, {argument}{''.join(behind)}, and a text in quotes, {quoted(whole)}"
    if value.startswith("~/"):
        return f"write the folder out, as in {key}=$HOME{value[1:]}"
    if any(whole.count(left) != whole.count(right) for left, right in ("()", "[]", "{}")):
        return "a bracket is not closed"
    if equals:
        return f"quote it twice: {quoted(whole)}"
    if argument == "help":
        return "--help tells what there is"
    if colon := re.fullmatch(r"([\w./]+):(.+)", argument):
        return f"write {colon[1]}={colon[2]}"
    if "=" in previous:
        return f"a list is written without spaces: {','.join([previous, argument, *behind])}"
    return f"write {key}={behind[0]}, without spaces" if behind else ""


def quoted(argument: str) -> str:
    """Return `key=value` with quotes for the shell and for Hydra.

    >>> print(quoted("model.negative_prompt=ugly, blurry"))
    'model.negative_prompt="ugly, blurry"'
    """
    key, _, value = argument.partition("=")
    within = value.strip("\"'").replace('"', r"\"")
    return f"'{key}=\"{within}\"'"


def as_several(key: str, value: Any) -> str:
    """Return how several values are written, if the value looks like it; else nothing.

    >>> as_several("seed", "0..3")
    'several values are a sweep: -m seed=range(0,4)'
    """
    if isinstance(value, list | ListConfig) and value:
        return f"several values are a sweep: -m {key}={','.join(map(str, value))}"
    if span := re.fullmatch(r"(\d+)(?:\.\.\.?|-|:)(\d+)", str(value)):
        return f"several values are a sweep: -m {key}=range({span[1]},{int(span[2]) + 1})"
    return ""


def where_it_is(cfg: DictConfig, key: str) -> list[str]:
    """Return the keys of the configuration that end in what was written, or in what it is called here; best first.

    >>> where_it_is(OmegaConf.create({"optim": {"optimizer": {"lr": 1e-4}}}), "learning_rate")
    ['optim.optimizer.lr']
    """
    *above, last = key.split(".")
    last = OTHER_NAMES.get(last, last)
    ends = [path for path in _paths(cfg) if path.split(".")[-1] == last and _is_for_users(path, key)]
    ends = [path for path in ends if path.split(".")[0] not in OTHER_PROGRAMS] or ends
    return sorted(ends, key=lambda path: (-len({*above} & {*path.split(".")}), path.count("."), path))


def first_key(section: DictConfig) -> str:
    """Return a key of a section, for an example."""
    return next((str(key) for key in section if not str(key).startswith("_")), "_target_")


def _is_for_users(path: str, key: str) -> bool:
    """Return True for what is set in this suite; of Hydra's own keys only the launcher's are."""
    return path.startswith("hydra.launcher.") or path.startswith("hydra.") == key.startswith("hydra.")


def _paths(cfg: DictConfig, above: str = "") -> list[str]:
    """Return the dotted path of each key, sections too."""
    found = []
    for key in cfg:
        path = f"{above}{key!s}"
        found.append(path)
        node = None if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, str(key)) else cfg[key]
        if isinstance(node, DictConfig):
            found += _paths(cast(DictConfig, node), f"{path}.")
    return found
