"""What test_shard.py starts with torchrun: two iterations and an evaluation, which it goes through in its own process too,
or runs with a directory.
"""

import sys

import torch
from hydra import compose, initialize_config_dir
from torch.distributed.tensor import DTensor

from flash_grpo.run import build, loop
from flash_grpo.run.compose import CONF
from flash_grpo.training.ranks import Ranks


def go_through(overrides: list[str]) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    trainer = build.prepare_trainer(cfg, Ranks("cpu"))
    _drop_some(trainer.method)
    records = [trainer.iterate(iteration) for iteration in (1, 2)]
    with trainer.updater.stepper.ema.applied():
        evaluate = build.build(cfg.evaluation.sampler, "evaluation.sampler")
        evaluated = evaluate(trainer.policy, trainer.rollouts.reward, trainer.prompts.test, trainer.ranks)
    named = list(trainer.policy.transformer.named_parameters())
    frozen = [value for _, value in named if not value.requires_grad]
    return {
        **{name: [getattr(record, name) for record in records] for name in ("loss", "gradient_norm", "base_kl")},
        "reward_mean": [record.reward_mean for record in records],
        "transitions": [record.transitions for record in records],
        "drift": [record.ratio_drift for record in records],
        "evaluation": evaluated.reward_PK,
        "parameters": {name: value.detach() for name, value in trainer.policy.trainable().items()},
        "held": sum((value.to_local() if isinstance(value, DTensor) else value).numel() for value in frozen),
        "whole": {name for name, value in named if not isinstance(value, DTensor)},
        "together": trainer.policy.forwards_together,
    }


def runs(overrides: list[str]) -> None:
    """Two iterations in one start, and in two."""
    for name, starts in (("whole", [2]), ("resumed", [1, 2])):
        for iterations in starts:
            with initialize_config_dir(CONF, version_base="1.3"):
                loop.run(
                    compose("config", overrides=[*overrides, f"budget.iterations={iterations}", "run_name=x"]), name
                )


def _drop_some(method) -> None:
    """Three rollouts of the first prompt train nothing, so that one of two ranks has fewer micro-batches."""
    advantage, kept_PG = method.advantage, torch.tensor([[0.0, 0, 0, 1], [1, 1, 1, 1]])
    object.__setattr__(method, "advantage", lambda reward_PG: advantage(reward_PG) * kept_PG)


if __name__ == "__main__":
    result = runs(sys.argv[3:]) if sys.argv[2] == "runs" else go_through(sys.argv[2:])
    if torch.distributed.get_rank() == 0:
        torch.save(result, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
