"""Check the scores of an iteration or evaluation as a whole: the same kind on all ranks, and groups that differ at all."""

from dataclasses import dataclass

import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.scoring import Kind
from flash_grpo.records.schema import IterationRecord
from flash_grpo.training.ranks import Ranks

SEVERAL = 3  # iterations in a row after which groups without spread are reported


def agreed_kind(ranks: Ranks, kind: Kind | None) -> Kind:
    """Return the main rank's kind of scores. RewardError, on every rank, if another rank has scores of another kind.

    kind: of this rank's scores; None if it has none, which the main rank may not say. Every rank calls this.
    """
    first = ranks.from_main(kind)
    assert first is not None
    differs = kind is not None and bool(first.refusal(kind))
    rank = int(ranks.max(torch.tensor(ranks.rank if differs else -1)))
    if rank >= 0:
        refusal = first.refusal(ranks.from_rank(rank, kind))
        raise RewardError(f"the reward differs between ranks: on rank {rank} {refusal} (rank 0)")
    return first


@dataclass
class SpreadWatch:
    """Notices groups whose rollouts all have the same reward, which train nothing, for SEVERAL iterations in a row.

    since: the iteration with which the present row began. extent: "all" or "some" of the groups, "" for none. said: the
    extent that was reported last.
    """

    since: int = 0
    extent: str = ""
    said: str = ""

    def line(self, record: IterationRecord) -> str:
        """Return what to report after this iteration; '' for nothing, so that a row is reported once."""
        share = record.groups_without_spread
        extent = "all" if share == 1 else "some" if share else ""
        if extent != self.extent:
            self.since, self.extent = record.iteration, extent
        if extent == self.said or record.iteration - self.since + 1 < SEVERAL:
            return ""
        self.said = extent
        return f"iterations {self.since}-{record.iteration}: {_described(extent, record)}"


def _described(extent: str, record: IterationRecord) -> str:
    if not extent:
        return "the rewards differ within every group again"
    what = "every group" if extent == "all" else f"some groups ({record.groups_without_spread:.0%} of them)"
    return (
        f"all rollouts have the same reward ({record.reward_mean:.4g} on average) in {what}; such groups train nothing "
        "(groups_without_spread in records.jsonl)"
    )
