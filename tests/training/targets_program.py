"""What test_trained_targets.py starts with torchrun, and calls in its own process too: one iteration of each target."""

import sys
from pathlib import Path

import torch
from conftest import SMALL
from hydra import compose, initialize_config_dir

from flash_grpo.run import build
from flash_grpo.run.compose import CONF
from flash_grpo.training.ranks import Ranks

PRESETS = ("none", "finite_difference", "neighbor_grpo", "awm", "diffusion_nft")
LAYOUT = ("rollout.layout.num_prompts=3", "rollout.layout.group_size=4")  # on two ranks the middle group is split
STEPS = ("training.epochs=2", "training.optimizer_steps=1", "training.shares=rollouts", "optim.optimizer.lr=1e-4")


def iterated(preset: str, *overrides: str) -> dict:
    """Return the record and the weights of one iteration on this process's ranks."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", overrides=[*SMALL, f"ablations={preset}", *LAYOUT, *STEPS, *overrides])
    trainer = build.prepare_trainer(cfg, Ranks("cpu"))
    record = trainer.iterate(1)
    weights = torch.cat([value.detach().flatten() for value in trainer.policy.trainable().values()])
    return {
        "weights": weights,
        "gradient_norm": record.gradient_norm,
        "reward": record.reward_mean,
        "transitions": record.transitions,
        "evaluations": (record.cost.forward_evaluations, record.cost.backward_evaluations),
    }


if __name__ == "__main__":
    made = {preset: iterated(preset) for preset in PRESETS}
    torch.save(made, Path(sys.argv[1]) / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
