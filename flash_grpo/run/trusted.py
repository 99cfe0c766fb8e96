"""Decide what may be built from a stored configuration: a run directory may be a stranger's, and a target is a call.

A part is an object that a file of flash_grpo/conf names. This finite list is stronger than a list of modules, because this
package also has functions that load checkpoints and start commands, and modules lead to modules. Targets are compared as
text with the list and never looked up: a module that is imported has already run.
"""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flash_grpo.run.compose import CONF

TARGET = "_target_"
# Called by no command that reads a stored configuration, so that a method of one's own needs no --trust to be exported.
NOT_BUILT = ("method", "schedule", "rollout", "budget", "optim.optimizer", "evaluation.held_out")
NOT_NAMED = "???"  # of the options `own`, whose target a user names
SENDS = "flash_grpo.rewards.client.RemoteReward"


@cache
def parts() -> frozenset[str]:
    """Return the targets that a stored configuration may name: those of flash_grpo/conf, without the reward servers' client."""
    files = [OmegaConf.to_container(OmegaConf.load(path)) for path in Path(CONF).rglob("*.yaml")]
    return frozenset(target for file in files for target in _targets(file)) - {SENDS, NOT_NAMED}


def _targets(node: Any) -> list[str]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node[TARGET]] if isinstance(node, dict) and TARGET in node else []
    return own + [target for item in inner for target in _targets(item)]


def without_foreign_calls(node: Any, key: str = "") -> Any:
    """Return a stored configuration from which `build` can call parts only; ValueError, naming key and target, if it cannot be.

    node: plain values, as read from run.json. key: the node's dotted name. Interpolations are refused, because a run stores
    its configuration resolved, and they could compose a target or read this machine's environment.
    """
    if isinstance(node, dict):
        inert = any(f"{key}.".startswith(f"{name}.") for name in NOT_BUILT)
        if TARGET in node and not inert:
            _refuse_foreign(node[TARGET], key)
        kept = {name: item for name, item in node.items() if not (inert and name == TARGET)}
        return {name: without_foreign_calls(item, f"{key}.{name}".lstrip(".")) for name, item in kept.items()}
    if isinstance(node, list):
        return [without_foreign_calls(item, f"{key}.{index}") for index, item in enumerate(node)]
    if isinstance(node, str) and "${" in node:
        raise ValueError(
            f"{key}={node[:80]!r}: run.json holds an interpolation, which a run never stores; --trust resolves it"
        )
    return node


def _refuse_foreign(target: Any, key: str) -> None:
    if target == SENDS:
        raise ValueError(
            f"{key}: run.json names the reward servers that would get the videos and the token; name them yourself, as in "
            "--reward remote reward.urls=[http://node7:8700], or give --trust"
        )
    if not isinstance(target, str) or target not in parts():
        raise ValueError(
            f"{key}.{TARGET}={str(target)[:80]!r}: run.json names this, which is not a part of this package, and it would be "
            "called; if you trust whoever made this run, --trust calls it"
        )
