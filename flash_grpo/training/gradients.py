"""Bring together the gradients of an optimizer step: over ranks, by expert, clipped."""

import torch

from flash_grpo.algorithm.experts import experts_of
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.training.ranks import Ranks

OfExperts = dict[str, list[torch.nn.Parameter]]


def trained_parameters(policy: Policy, trained_E: torch.Tensor) -> OfExperts:
    """Return the trainable parameters by expert, without those of experts that have no transition in this step.

    trained_E: how many transitions of all ranks each expert has. The only expert of a policy goes by no name, "".
    """
    parameters, names = policy.trainable(), experts_of(policy).names
    if len(names) == 1:
        return {"": list(parameters.values())}
    return {
        expert: [value for name, value in parameters.items() if name.startswith(f"{expert}.")]
        for expert, count in zip(names, trained_E.tolist(), strict=True)
        if count
    }


def clipped(of_expert: OfExperts, ranks: Ranks, largest: float) -> tuple[float, dict[str, float]]:
    """Sum the gradients over ranks and clip their joint norm to `largest`; return the norm before, and each expert's.

    Each named expert's is that before clipping too.
    """
    parameters = [parameter for mine in of_expert.values() for parameter in mine]
    if ranks.world_size > 1:
        for parameter in parameters:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = ranks.sum(own)
    norms = {expert: _norm(mine) for expert, mine in of_expert.items() if expert}
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest, error_if_nonfinite=True)
    return float(norm), norms


def _norm(parameters: list[torch.nn.Parameter]) -> float:
    return float(
        torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    )
