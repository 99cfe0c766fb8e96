"""Evaluate a run's averaged weights by the reward that it trains on and by one that it does not, and record the result."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from flash_grpo.algorithm.protocols import Policy, RewardError
from flash_grpo.algorithm.scoring import CheckedReward, Kind, name_of
from flash_grpo.records.schema import EvalRecord
from flash_grpo.training.evaluated import Evaluated, Judged
from flash_grpo.training.evaluation import Evaluation
from flash_grpo.training.meter import EVALUATION
from flash_grpo.training.trainer import Trainer


@dataclass(kw_only=True)
class Evaluator:
    """Evaluates what `trainer` has trained. held_out: a reward that never trains; None if there is none.

    policy: the trainer's, with the guidance of evaluation.
    """

    trainer: Trainer
    policy: Policy
    evaluation: Evaluation
    held_out: CheckedReward | None

    def evaluate(self) -> Evaluated:
        """Evaluate the averaged weights and charge it. RewardError if the held-out reward is the trained one."""
        trainer = self.trainer
        with trainer.updater.stepper.ema.applied():
            evaluated = self.evaluation(
                self.policy,
                trainer.rollouts.reward,
                trainer.prompts.test,
                trainer.ranks,
                journal=trainer.journal,
                timed=lambda: trainer.meter.phase(EVALUATION, only_completed=True),
                held_out=self.held_out,
            )
        trainer.meter.charge(evaluated.device_seconds, EVALUATION)
        trainer.meter.settle()
        held_out = evaluated.held_out
        if self.held_out is not None and held_out is not None and torch.equal(held_out.reward_PK, evaluated.reward_PK):
            raise RewardError(
                f"evaluation.held_out: {name_of(self.held_out.reward)} gave every video the score of the trained reward, so "
                "it holds nothing out; name another reward, or null"
            )
        return evaluated

    def record(self, iteration: int, evaluated: Evaluated) -> EvalRecord:
        """Return the record of an evaluation after `iteration`."""
        return EvalRecord(
            iteration=iteration,
            optimizer_steps=self.trainer.updater.stepper.optimizer_steps,
            cost=self.trainer.meter.cost,
            evaluation_seconds=self.trainer.meter.evaluation_seconds,
            reward_mean=evaluated.mean,
            reward_sem=evaluated.sem,
            reward_parts=evaluated.parts,
            prompt_rewards=evaluated.prompt_rewards,
            n=evaluated.reward_PK.numel(),
            diversity=evaluated.diversity,
            base_distance=evaluated.base_distance,
            **({} if evaluated.held_out is None else _recorded(evaluated.held_out)),
        )

    def state(self) -> dict[str, Any]:
        """Return what the next evaluation depends on, the same on every rank."""
        kind = self.held_out and self.held_out.kind
        return {"held_out": asdict(kind) if kind else None}

    def restore(self, state: dict[str, Any]) -> None:
        if self.held_out is not None:
            kind = state.get("held_out")
            self.held_out.kind = Kind(**kind) if kind else None


def _recorded(held_out: Judged) -> dict[str, Any]:
    """Return the fields of an EvalRecord that a held-out reward fills."""
    return {
        "held_out": held_out.mean,
        "held_out_sem": held_out.sem,
        "held_out_parts": held_out.parts,
        "held_out_prompts": held_out.prompt_rewards,
    }
