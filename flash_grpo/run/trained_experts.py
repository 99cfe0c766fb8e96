"""Tell a model of several transformers which of them a method trains."""

import copy
import logging
from typing import Any

import torch
from omegaconf import DictConfig

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.experts import Experts, high_and_low
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.run.settings import ConfigError

log = logging.getLogger(__name__)


def with_trained_experts(node: DictConfig, method: Method, schedule: FlowSchedule) -> DictConfig:
    """Return the model's node with `experts`: those that the method's steps reach. A model of one is returned as it is.

    ConfigError if the node names others.
    """
    if not _has_several(node):
        return node
    try:
        ranges.number("model.boundary", node.boundary, above=0, below=1)
        if node.experts is not None:
            ranges.some_of("model.experts", node.experts, high_and_low(node.boundary).names)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    experts, candidate_T = high_and_low(node.boundary), method.plan.candidates(len(schedule))
    reached = _names(experts, schedule.timestep_T[candidate_T])
    if node.experts is not None and set(node.experts) != set(reached):
        raise ConfigError(_why_not(node, experts, candidate_T, schedule.timestep_T))
    return _with(node, reached)


def with_stored_experts(node: DictConfig, state: dict[str, Any]) -> DictConfig:
    """Return the model's node with `experts`: those that have weights in a checkpoint."""
    return _with(node, sorted({name.partition(".")[0] for name in state["ema"]})) if _has_several(node) else node


def say_who_is_trained(node: DictConfig) -> None:
    """Log which transformer stays as it is. node: as returned by `with_trained_experts`."""
    for name in set(high_and_low(node.boundary).names) - set(node.experts) if _has_several(node) else ():
        side = "from" if name == "transformer" else "below"
        log.info(
            "%s computes timesteps %s %g, which method.plan never trains: it stays as it is, and gets no adapter",
            name,
            side,
            1000 * node.boundary,
        )


def _has_several(node: DictConfig) -> bool:
    return "experts" in node and node.get("boundary") is not None


def _with(node: DictConfig, names: list[str]) -> DictConfig:
    told = copy.deepcopy(node)
    told.experts = names
    return told


def _names(experts: Experts, timestep_N: torch.Tensor) -> list[str]:
    return [experts.names[index] for index in experts.of(timestep_N).unique().tolist()]


def _why_not(node: DictConfig, experts: Experts, candidate_T: torch.Tensor, timestep_T: torch.Tensor) -> str:
    """Return why these experts are not those that the plan's candidates train, and how they would be."""
    expert_T, drawn = experts.of(timestep_T), candidate_T.nonzero().flatten().tolist()
    steps = [(expert_T == index).nonzero().flatten().tolist() for index in range(len(experts))]
    whose = ", ".join(f"{name} computes {_span(mine)}" for name, mine in zip(experts.names, steps, strict=True))
    return (
        f"model.experts={ranges.shown(list(node.experts))}: method.plan draws {_span(drawn)} of {len(timestep_T)}, "
        f"and with model.boundary={node.boundary} {whose}; move method.plan.first_step and last_step "
        "(rollout.last_candidate) to the steps of the one that is to be trained, or leave model.experts null"
    )


def _span(steps: list[int]) -> str:
    return f"steps {steps[0]}-{steps[-1]}" if steps else "no step"
