"""One iteration: rollouts, rewards, optimizer steps. It never learns which method runs."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from flash_grpo.algorithm.batches import Layout, Prompts
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.scoring import Kind
from flash_grpo.algorithm.types import FlowSchedule, PromptBatch, Rollouts, Trained
from flash_grpo.records.schema import IterationRecord
from flash_grpo.training.iteration_record import iteration_record, over_ranks
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.rollouts import RolloutMaker
from flash_grpo.training.score_checks import agreed_kind
from flash_grpo.training.update import Updater


@dataclass(kw_only=True)
class Trainer:
    """What an iteration is made by: rollouts, then an update. All parts share policy, method, meter and journal."""

    prompts: Prompts
    layout: Layout
    rollouts: RolloutMaker
    updater: Updater
    ranks: Ranks
    meter: Meter
    journal: Journal
    seed: int

    def iterate(self, iteration: int) -> IterationRecord:
        """Run iteration 1, 2, … and return what happened, over all ranks."""
        batch = self.batch(iteration)
        rollouts, scores = self.journal.resumable("rollouts", lambda: self.rollouts.scored(batch))
        kind = agreed_kind(self.ranks, Kind.of(scores))
        reward_PG = over_ranks(self.ranks, batch, scores.total_B)
        with self.meter.phase("update"):
            trained = self.update(rollouts, self.method.advantage(reward_PG))
        self.journal.done.clear()
        part_PG = {name: over_ranks(self.ranks, batch, scores.parts[name]) for name in kind.parts}
        return iteration_record(self.updater, batch, reward_PG, part_PG, trained)

    def update(self, rollouts: Rollouts, advantage_PG: torch.Tensor) -> Trained:
        return self.updater.update(rollouts, advantage_PG)

    def batch(self, iteration: int) -> PromptBatch:
        """Return this rank's rollouts of an iteration, before they are made."""
        return self.layout.batch(iteration, self._texts(iteration), self.ranks.rank)

    def _texts(self, iteration: int) -> list[str]:
        """Return the iteration's prompts, over all ranks."""
        return self.prompts.drawn(iteration, self.layout.num_prompts, self.seed)

    def state(self) -> dict[str, Any]:
        """Return what the next iteration depends on, the same on every rank."""
        return {
            "parameters": {name: value.detach() for name, value in self.policy.trainable().items()},
            **self.updater.stepper.state(),
            "meter": self.meter.state(),
            "journal": self.journal.state(),
            "scores": self.rollouts.reward.kind and asdict(self.rollouts.reward.kind),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updater.stepper.restore(state)
        self.meter.restore(state["meter"])
        self.journal.restore(state["journal"])
        scores = state.get("scores")  # earlier versions did not save it
        self.rollouts.reward.kind = Kind(**scores) if scores else None

    def unfinished(self) -> dict[str, Any]:
        """Return what this rank has done of the iteration, or the evaluation, under way."""
        return {
            "done": self.journal.done,
            "gradients": {name: value.grad for name, value in self.policy.trainable().items()},
            "unsettled": self.meter.unsettled(),
        }

    def resume_unfinished(self, mine: dict[str, Any]) -> None:
        self.journal.done = mine["done"]
        self.meter.restore_unsettled(mine["unsettled"])
        for name, value in self.policy.trainable().items():
            value.grad = mine["gradients"][name]

    @property
    def policy(self) -> Policy:
        return self.rollouts.policy

    @property
    def schedule(self) -> FlowSchedule:
        return self.rollouts.schedule

    @property
    def method(self) -> Method:
        return self.rollouts.method

    @method.setter
    def method(self, method: Method) -> None:
        self.rollouts.method = self.updater.replayer.method = method
