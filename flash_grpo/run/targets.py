"""Check what a configuration names before a model is loaded: that targets exist, and that parts do what they are asked."""

import inspect
import pkgutil
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.batches import Layout, Prompts
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.paths import Path, routes
from flash_grpo.algorithm.schedule import check_stochastic
from flash_grpo.algorithm.targets import tried
from flash_grpo.algorithm.types import FlowSchedule, LossTerms
from flash_grpo.records.identity import SERVERS, comparable
from flash_grpo.run.settings import ConfigError

GIVEN_LATER = {"device", "lora"}  # arguments of a model that no configuration has
OF_YOUR_OWN = ("method", "reward", "model")  # groups with an option `own`
HELD_OUT = "evaluation.held_out"
KEYS = (
    "schedule",
    "method",
    "model",
    "prompts",
    "reward",
    "rollout",
    "training",
    "optim",
    "budget",
    "evaluation",
    "checkpoint",
    "stop_when",
)


def check_method(method: Method, schedule: FlowSchedule) -> None:
    """Raise ConfigError unless the method's parts do on this schedule what the trainer asks of them."""
    if not hasattr(method.plan, "candidates"):
        raise ConfigError(
            f"method.plan: {type(method.plan).__name__} has no candidates(num_steps), see algorithm/plans.py"
        )
    candidate_T = _answered("method.plan", method.plan.candidates, len(schedule))
    if not candidate_T.any():
        raise ConfigError("method.plan: no step may be stochastic, so nothing would be trained")
    if method.needs.stochastic:
        _answered("schedule", check_stochastic, schedule, candidate_T)
    _answered("method.plan", method.check_plan, len(schedule))
    step = int(candidate_T.nonzero()[0])
    terms = _answered("method.target", tried, method.target, schedule, step, method.ratio_clip)
    if not isinstance(terms, LossTerms) or terms.loss_N.shape != (2,):
        raise ConfigError(
            "method.target: must return LossTerms with a loss for each trained step, see algorithm/targets.py"
        )
    weight_T = _answered("method.weigh", method.weigh, schedule)
    usable = (
        isinstance(weight_T, torch.Tensor)
        and weight_T.shape == (len(schedule),)
        and weight_T[candidate_T].isfinite().all()
        and (weight_T[candidate_T] > 0).all()
    )
    if not usable:
        raise ConfigError("method.weigh: must return a positive, finite weight for each step that may be stochastic")
    reward_PG = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]])
    advantage_PG = _answered("method.advantage", method.advantage, reward_PG)
    if not isinstance(advantage_PG, torch.Tensor) or advantage_PG.shape != reward_PG.shape:
        raise ConfigError(
            "method.advantage: must return an advantage for each reward, [P, G]; see algorithm/advantage.py"
        )


def check_train_fraction(fraction: float, method: Method) -> None:
    """Raise ConfigError if rollouts are to be chosen by advantages that do not weigh them."""
    if fraction < 1 and method.needs.siblings:
        raise ConfigError(
            f"rollout.train_fraction={fraction}: this method's target trains each rollout by the advantages of all its "
            "siblings, so its own does not say whether to train it; set rollout.train_fraction=1"
        )


def check_tree(method: Method, layout: Layout, num_steps: int) -> None:
    """Raise ConfigError for a tree that does not part the siblings of this layout by the plan's stochastic steps."""
    if method.tree is None:
        return
    whole = replace(layout, world_size=1)  # rollouts of a prompt side by side
    for iteration in range(1, 9):
        batch = whole.batch(iteration, [""] * layout.num_prompts, 0)
        mask_BT = _answered("method.plan", method.plan, batch, num_steps, layout.seed)
        _answered("method.tree", method.tree.check, mask_BT.unflatten(0, (layout.num_prompts, -1)))


def check_path(path: Path, method: Method, layout: Layout, num_steps: int) -> None:
    """Raise ConfigError for a path around one step of rollouts that have several."""
    batch = layout.batch(1, [""] * layout.num_prompts, 0)
    mask_BT = _answered("method.plan", method.plan, batch, num_steps, layout.seed)
    _answered("rollout.path", routes, batch, mask_BT, path, len(batch))


def check_solver(solve: Any, schedule: FlowSchedule, key: str = "rollout.solve") -> None:
    """Raise ConfigError unless the solver takes a step on this schedule."""
    x_SCFHW = torch.zeros(1, 1, 1, 1, 1)
    x_next = _answered(key, solve, x_SCFHW, x_SCFHW, None, schedule, 0)
    if not isinstance(x_next, torch.Tensor) or x_next.shape != x_SCFHW.shape:
        raise ConfigError(f"{key}: must return the next latents, of the same shape; see algorithm/solvers.py")


def _answered(key: str, function: Any, *args: Any) -> Any:
    """Call a function that the configuration names; ConfigError, naming the key, if it does not take such arguments."""
    try:
        return function(*args)
    except Exception as error:  # whatever a function of a user's raises
        why = " ".join(str(error).split())
        raise ConfigError(why if names_a_key(why) else f"{key}: {why}") from error


def check_reward(reward: Any, key: str) -> None:
    """Raise ConfigError for a reward that does not take videos and texts. What has no signature is called untried."""
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigError(
            f"{key}: is called with videos and texts, and its target does not take these: {error}"
        ) from error


def check_held_out(node: DictConfig | None, trained: DictConfig, prompts: Prompts) -> None:
    """Raise ConfigError for a held-out reward that is trained on, alone or in a sum, or that does not know the texts.

    node: None if there is none. trained: the reward's node. Two servers' addresses count as two rewards; if both then give
    the same scores, the first evaluation refuses them.
    """
    if node is None:
        return
    check_arguments(node, HELD_OUT)
    check_texts(node, prompts)
    if _is_within(_defining(node), _defining(trained)):
        raise ConfigError(
            f"{HELD_OUT}: is trained on, as reward or in it, so it holds nothing out; name another, or null"
        )


def _defining(node: Any) -> Any:
    """Return a reward's node as plain values, without what does not change its scores."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict):
        return plain
    aside = {"_convert_", *SERVERS} - {"urls"}
    return {key: comparable(str(key), _defining(value)) for key, value in plain.items() if key not in aside}


def _is_within(part: Any, whole: Any) -> bool:
    return part == whole or (isinstance(whole, dict) and any(_is_within(part, inner) for inner in whole.values()))


def check_texts(node: Any, prompts: Prompts) -> None:
    """Raise ConfigError if a reward, or one inside it, knows texts of its own only and the prompts are others."""
    if isinstance(node, DictConfig):
        for name in node:
            if not OmegaConf.is_missing(node, name):
                check_texts(node[name], prompts)
        refuse = getattr(located(node._target_, "reward"), "check_texts", None) if "_target_" in node else None
        if refuse:
            try:
                refuse((*prompts.train, *prompts.test))
            except ValueError as error:
                raise ConfigError(f"prompts: the reward {node._target_} does not know them: {error}") from error


def check_arguments(node: DictConfig, key: str) -> None:
    """Raise ConfigError if the node has a key that its target does not take, or lacks one that it needs."""
    names = {str(name) for name in node if not str(name).startswith("_")} | GIVEN_LATER
    parameters = _signature(node._target_, key).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    unknown = sorted(names - GIVEN_LATER - parameters.keys())
    if node.get("_partial_"):  # what has no default is given in each call
        unknown += sorted(names & set(required))
    missing = [name for name in required if name not in names and not node.get("_partial_")]
    if unknown:
        raise ConfigError(f"{key}: {node._target_} takes no {', '.join(unknown)}{_way_out(node, key)}")
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: must be given")


def _way_out(node: DictConfig, key: str) -> str:
    """Return how a part of a user's own begins without the keys of the part that it replaces; '' for parts of ours."""
    group = key.partition(".")[0]
    if group not in OF_YOUR_OWN or node._target_.startswith("flash_grpo."):
        return ""
    return f"; {group}=own begins without the keys of another {group}"


def _signature(target: str, key: str) -> inspect.Signature:
    called = located(target, key)
    try:
        return inspect.signature(called)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target}: cannot be called") from error


def located(target: str, key: str) -> Any:
    """Return the object that a `_target_` names; ConfigError if there is none."""
    try:
        return pkgutil.resolve_name(target)
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f"{key}._target_={target}: there is no object of this name") from error


def names_a_key(message: str) -> bool:
    """Return True if a message of ours begins with the key that it is about."""
    return message.startswith(KEYS)
