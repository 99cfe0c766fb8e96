"""Evaluation: one pinned sampler for every method, so that only the weights differ."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.denoise import Solver
from flash_grpo.algorithm.protocols import Policy, Reward
from flash_grpo.algorithm.solvers import euler
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.training.evaluated import Evaluated, joined
from flash_grpo.training.evaluated_part import Keep, PartEvaluator
from flash_grpo.training.journal import Journal
from flash_grpo.training.ranks import Ranks

CONTACT_SHEET_ROWS = 16
Timed = Callable[[], AbstractContextManager[Callable[[], None]]]


def untimed() -> AbstractContextManager[Callable[[], None]]:
    """Stand in for `Meter.phase` where nothing is to be charged."""
    return nullcontext(lambda: None)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluate by deterministic steps from noise that belongs to (seed, prompt, index): paired across runs."""

    schedule: FlowSchedule
    noises_per_prompt: int
    """K, videos per prompt."""

    seed: int
    """Of the evaluation noise, which training does not use."""

    batch: int
    """Videos in one call of the policy and of the decoder; does not change results."""

    solve: Solver = euler
    """The deterministic steps, pinned here, whatever training's rollouts use."""

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, FlowSchedule):
            made = type(self.schedule).__name__
            raise ValueError(f"evaluation.sampler.schedule: makes {made}, not FlowSchedule; see algorithm/schedule.py")
        ranges.whole("evaluation.sampler.noises_per_prompt", self.noises_per_prompt)
        ranges.whole("evaluation.sampler.seed", self.seed, at_least=0)
        ranges.whole("evaluation.sampler.batch", self.batch)

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        reward: Reward,
        texts: tuple[str, ...],
        ranks: Ranks,
        keep: Keep | None = None,
        journal: Journal | None = None,
        timed: Timed = untimed,
        held_out: Reward | None = None,
    ) -> Evaluated:
        """Make and score the videos of all texts, shared out to ranks by prompt.

        keep: is given each of this rank's videos as it is made: text, index, video, score, parts. journal: where a run that
        has to leave in the middle notes what is done. timed: around each part, see `Meter.phase`. held_out: a reward that never
        trains, asked for the same videos.
        """
        journal = journal or Journal(ranks, policy.forwards_together)
        mine = list(range(len(texts)))[ranks.rank :: ranks.world_size]
        size = max(1, self.batch // self.noises_per_prompt)
        policy.prefetch(texts[prompt] for prompt in mine)
        show = frozenset(shown([texts[prompt] for prompt in mine]) if ranks.is_main else ())
        evaluator = PartEvaluator(self, policy, reward, held_out, texts, show, keep, journal)
        parts = []
        with journal.section(evaluator.keep_up):
            for index, first in enumerate(range(0, len(mine), size)):
                chosen, name = tuple(mine[first : first + size]), f"evaluation {index}"
                with timed() as charge:
                    parts.append(journal.resumable(name, partial(evaluator.part, chosen, name, charge)))
        journal.done.clear()
        return joined(parts, texts, self.noises_per_prompt, ranks, held_out is not None)


def shown(texts: list[str]) -> list[str]:
    """Return the texts that get a row in the contact sheet: at most CONTACT_SHEET_ROWS, evenly spaced."""
    rows = torch.linspace(0, len(texts) - 1, min(CONTACT_SHEET_ROWS, len(texts))).round().long()
    return [texts[row] for row in rows.tolist()]
