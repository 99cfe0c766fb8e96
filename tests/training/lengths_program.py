"""What test_lengths.py starts with torchrun: ranks whose rollouts have different lengths, and a rank that is asked to leave.

lengths_program.py OUTPUT OVERRIDE ...
"""

import sys

import torch
from hydra import compose, initialize_config_dir

from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.policies.wan import WanPolicy
from flash_grpo.run import build
from flash_grpo.run.compose import CONF
from flash_grpo.training.pace import Apart, Leave
from flash_grpo.training.ranks import Ranks


def prepared(overrides: list[str]):
    """Return a trainer whose rollouts take 11 steps on the first rank and 5 on the last, and its evaluation."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    trainer = build.prepare_trainer(cfg, Ranks("cpu"))
    if not trainer.ranks.is_main:
        trainer.rollouts.schedule = flow_schedule(5)
    return trainer, build.build(cfg.evaluation.sampler, "evaluation.sampler")


def evaluated(trainer, evaluation) -> None:
    with torch.no_grad():
        evaluation(
            trainer.policy, trainer.rollouts.reward, trainer.prompts.test, trainer.ranks, journal=trainer.journal
        )


def goes_on(overrides: list[str]) -> list[int]:
    """Return how many transitions two iterations trained, and how many velocities this rank computed in all."""
    trainer, evaluation = prepared(overrides)
    calls = counting(lambda: None)
    transitions = [trainer.iterate(iteration).transitions for iteration in (1, 2)]
    evaluated(trainer, evaluation)
    return [*transitions, len(calls)]


def leaves(overrides: list[str], work: str, after: int) -> list[int]:
    """Ask the last rank to leave at its velocity number `after` of this work.

    Return whether this rank left, how many velocities it computed in all, and how many after the mark of the other.
    """
    trainer, evaluation = prepared(overrides)
    requests: list[int] = []
    behind: list[int] = []

    def count() -> None:
        if marked(trainer):
            behind.append(1)
        if not trainer.ranks.is_main and len(calls) == after:
            requests.append(1)

    if work == "update":
        rollouts, _ = trainer.rollouts.scored(trainer.batch(1))
        trainer.journal.done.clear()
    calls = counting(count)
    trainer.journal.asked = lambda: bool(requests)
    try:
        if work == "rollouts":
            trainer.rollouts.scored(trainer.batch(1))
        elif work == "update":
            advantage_PG = torch.ones(trainer.layout.num_prompts, trainer.layout.group_size)
            trainer.update(rollouts, advantage_PG)
        else:
            evaluated(trainer, evaluation)
    except Leave:
        return [1, len(calls), len(behind)]
    return [0, len(calls), len(behind)]


def marked(trainer) -> bool:
    pace = trainer.journal.pace
    return isinstance(pace, Apart) and pace.mark.found()  # in lockstep no rank leaves one


def counting(action) -> list[int]:
    """Note every velocity that this rank computes, and act before it."""
    calls: list[int] = []
    velocity = WanPolicy.velocity

    def counted(self, *arguments):
        calls.append(1)
        action()
        return velocity(self, *arguments)

    WanPolicy.velocity = counted
    return calls


if __name__ == "__main__":
    output, overrides = sys.argv[1], sys.argv[2:]
    original = WanPolicy.velocity
    results = {"goes on": goes_on(overrides)}
    for work in ("rollouts", "update", "evaluation"):
        WanPolicy.velocity = original
        results[work] = leaves(overrides, work, 3)
    torch.save(results, f"{output}.{torch.distributed.get_rank()}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
