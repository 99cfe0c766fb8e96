"""Say of an iteration what its record holds, over all ranks. `records.schema.IterationRecord` has each field's formula."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from flash_grpo.algorithm.types import PromptBatch, Trained
from flash_grpo.records.schema import COST_PHASES, IterationRecord
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.update import Updater


@dataclass(frozen=True, kw_only=True)
class Over:
    """Statistics over the trained transitions of all ranks. total: their number."""

    ranks: Ranks
    total: int

    def mean(self, value_N: torch.Tensor) -> float:
        return float(self.ranks.sum(value_N.double().sum())) / max(self.total, 1)

    def largest(self, value_N: torch.Tensor) -> float:
        return float(self.ranks.max(value_N.max() if len(value_N) else torch.tensor(-torch.inf)))


def over_ranks(ranks: Ranks, batch: PromptBatch, value_B: torch.Tensor) -> torch.Tensor:
    """Return all ranks' values as a matrix [P, G], the same on every rank."""
    value_PG = torch.zeros(batch.num_prompts, batch.group_size)
    value_PG[batch.prompt_B, batch.sibling_B] = value_B.cpu()
    return ranks.sum(value_PG)


def iteration_record(
    updater: Updater,
    batch: PromptBatch,
    reward_PG: torch.Tensor,
    part_PG: dict[str, torch.Tensor],
    trained: Trained,
) -> IterationRecord:
    """Return the record of the iteration that `batch` belongs to, and settle its cost. part_PG: the reward's parts."""
    ranks, meter = updater.ranks, updater.stepper.meter
    step_T = ranks.sum(torch.bincount(trained.step_N, minlength=len(updater.replayer.schedule)).double())
    over = Over(ranks=ranks, total=int(step_T.sum()))
    spread_P, seconds = reward_PG.std(1, correction=0), meter.settle()
    return IterationRecord(
        iteration=batch.iteration,
        optimizer_steps=updater.stepper.optimizer_steps,
        cost=meter.cost,
        evaluation_seconds=meter.evaluation_seconds,
        seconds={phase: seconds[phase] for phase in COST_PHASES},
        reward_mean=float(reward_PG.mean()),
        reward_std=float(reward_PG.std(correction=0)),
        reward_parts={name: float(value_PG.mean()) for name, value_PG in part_PG.items()},
        within_group_std=float(spread_P.mean()),
        groups_without_spread=float((spread_P == 0).double().mean()),
        transitions=over.total,
        steps=(step_T / max(over.total, 1)).tolist(),
        weight_min=-over.largest(-trained.weight_N),
        weight_max=over.largest(trained.weight_N),
        advantage_abs_mean=over.mean(trained.advantage_N.abs()),
        ratio_drift=over.largest((trained.first_ratio_N - 1).abs()),
        **_loss_terms(over, trained),
        gradient_norm=sum(trained.gradient_norms) / len(trained.gradient_norms),
        lr=updater.stepper.optimizer.param_groups[0]["lr"],
        expert_shares=_shares(updater, step_T),
        expert_gradient_norms=_norms(trained),
    )


def _shares(updater: Updater, step_T: torch.Tensor) -> dict[str, float]:
    """Return each expert's share of the transitions; {} of a policy that has one. step_T: transitions at each step."""
    experts = updater.replayer.experts
    if len(experts) == 1:
        return {}
    count_E = torch.zeros(len(experts), dtype=step_T.dtype).index_add(
        0, experts.of(updater.replayer.schedule.timestep_T), step_T
    )
    return dict(zip(experts.names, (count_E / count_E.sum().clamp(min=1)).tolist(), strict=True))


def _norms(trained: Trained) -> dict[str, float]:
    """Return each expert's gradient norm, mean over the optimizer steps that trained it."""
    names = {name for norms in trained.expert_norms for name in norms}
    return {name: fmean(norms[name] for norms in trained.expert_norms if name in norms) for name in sorted(names)}


def _loss_terms(over: Over, trained: Trained) -> dict[str, Any]:
    """Return the record's fields that come of the loss of each transition."""

    def joint(name: str) -> torch.Tensor:
        return torch.cat([torch.empty(0), *(getattr(term, name).float() for term in trained.terms)])

    ratio_N = joint("ratio_N")
    return {
        "ratio_mean": over.mean(ratio_N),
        "ratio_max": over.largest(ratio_N),
        "clip_fraction": over.mean(joint("clipped_N")),
        "approx_kl": over.mean(joint("approx_kl_N")),
        "base_kl": over.mean(joint("base_kl_N")),
        "loss": over.mean(joint("loss_N")),
    }
