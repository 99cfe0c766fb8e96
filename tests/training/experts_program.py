"""What test_experts_on_ranks.py starts with torchrun, and goes through in its own process too: iterations of two experts.

experts_program.py OUTPUT
"""

import sys

import torch
from conftest import SMALL
from hydra import compose, initialize_config_dir

from flash_grpo.run import build
from flash_grpo.run.compose import CONF
from flash_grpo.training.pace import Lockstep
from flash_grpo.training.ranks import Ranks

CHOSEN = (
    "model=tiny_two_experts",
    "optim=lora",
    "optim.optimizer.lr=1e-3",
    "method.kl_weight=0.01",
    "rollout.batch=4",
    "training.batch=1",
    "evaluation.sampler.batch=8",
)
# a rank has one prompt, whose siblings share a path to their step: it has its own number of velocities and its own experts
PATH = ("ablations=shared_noise", "rollout.path.lead=2", "rollout.path.follow=1", "method.plan.draw=stratified")
CASES = {
    "two optimizer steps": ("training.optimizer_steps=2",),
    "path": PATH,
    "sharded": ("+model.shard=true",),
    "sharded path": ("+model.shard=true", *PATH),
}


def go_through(*overrides: str) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", overrides=[*SMALL, *CHOSEN, *overrides])
    trainer = build.prepare_trainer(cfg, Ranks("cpu"))
    turns = []
    keep_up = Lockstep._vote

    def voted(self, mine):
        said = keep_up(self, mine)
        turns.append(said != mine)
        return said

    Lockstep._vote = voted
    records = [trainer.iterate(iteration) for iteration in (1, 2, 3)]
    Lockstep._vote = keep_up
    with trainer.updater.stepper.ema.applied():
        evaluate = build.build(cfg.evaluation.sampler, "evaluation.sampler")
        evaluated = evaluate(trainer.policy, trainer.rollouts.reward, trainer.prompts.test, trainer.ranks)
    names = ("loss", "gradient_norm", "base_kl", "reward_mean", "transitions", "expert_shares", "expert_gradient_norms")
    return {
        **{name: [getattr(record, name) for record in records] for name in names},
        "drift": max(record.ratio_drift for record in records),
        "evaluation": evaluated.reward_PK,
        "parameters": {name: value.detach() for name, value in trainer.policy.trainable().items()},
        "together": trainer.policy.forwards_together,
        "waited": sum(turns),
    }


if __name__ == "__main__":
    results = {name: go_through(*overrides) for name, overrides in CASES.items()}
    torch.save(results, f"{sys.argv[1]}.{torch.distributed.get_rank()}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
