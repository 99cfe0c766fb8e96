"""Say of an iteration what its record holds, over all ranks. `records.schema.IterationRecord` has each field's formula."""

from dataclasses import dataclass
from functools import partial

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
    ranks, meter = updater.ranks, updater.meter
    step_T = ranks.sum(torch.bincount(trained.step_N, minlength=len(updater.schedule)).double())
    over = Over(ranks=ranks, total=int(step_T.sum()))
    joint = partial(_joint, trained)
    spread_P, ratio_N, seconds = reward_PG.std(1, correction=0), joint("ratio_N"), meter.settle()
    return IterationRecord(
        iteration=batch.iteration,
        optimizer_steps=updater.optimizer_steps,
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
        ratio_mean=over.mean(ratio_N),
        ratio_max=over.largest(ratio_N),
        ratio_drift=over.largest((trained.first_ratio_N - 1).abs()),
        clip_fraction=over.mean(joint("clipped_N")),
        approx_kl=over.mean(joint("approx_kl_N")),
        base_kl=over.mean(joint("base_kl_N")),
        loss=over.mean(joint("loss_N")),
        gradient_norm=sum(trained.gradient_norms) / len(trained.gradient_norms),
        lr=updater.optimizer.param_groups[0]["lr"],
    )


def _joint(trained: Trained, name: str) -> torch.Tensor:
    """Return a term of the loss over all transitions [N]."""
    return torch.cat([torch.empty(0), *(getattr(term, name).float() for term in trained.terms)])
