"""What test_ranks.py starts with torchrun, and goes through in its own process too: a small run that notes its rollouts."""

import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from conftest import SMALL
from hydra import compose, initialize_config_dir

from flash_grpo import cli, run
from flash_grpo.trainer import Trainer

CHOSEN = (
    "ablations=no_iso_temporal",
    "training.optimizer_steps=2",
    "method.kl_weight=0.004",
)


class NotingTrainer(Trainer):
    """Notes of every rollout, under its name, what this rank made of it."""

    def update(self, rollouts, advantage_PG):
        if rollouts.batch.iteration == 3 and self.ranks.rank == self.ranks.world_size - 1 and not self.asked_to_stop:
            NotingTrainer.asked_to_stop = True
            signal.raise_signal(signal.SIGTERM)  # all ranks leave at the next piece
        trained = super().update(rollouts, advantage_PG)
        batch, taken = rollouts.batch, rollouts.transitions
        for row in range(len(batch)):
            mine = taken.rollout_N == row
            self.notes[batch.iteration, int(batch.prompt_B[row]), int(batch.sibling_B[row])] = {
                "text": batch.text[row],
                "steps": taken.step_N[mine].tolist(),
                "latent": taken.x_next_NCFHW[mine],
                "advantage": float(advantage_PG[batch.prompt_B[row], batch.sibling_B[row]]),
            }
        return trained


def go_through(folder: Path, *overrides: str) -> dict:
    """The run in three starts, the third from the middle of an iteration; the notes of this rank's rollouts."""
    run.Trainer, NotingTrainer.notes, NotingTrainer.asked_to_stop = NotingTrainer, {}, False
    for iterations in (1, 4, 4):
        with suppress(run.Interrupted):
            run.run(_config(folder, *CHOSEN, *overrides, f"budget.iterations={iterations}"), "run")
    run.Trainer = Trainer
    return NotingTrainer.notes


def refused(folder: Path) -> str:
    """How three rollouts on two ranks are refused."""
    try:
        run.prepare(_config(folder, "rollout.layout.num_prompts=1", "rollout.layout.group_size=3"), "refused")
    except run.ConfigError as error:
        return str(error)
    return "not refused"


def _config(folder: Path, *overrides: str):
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        return compose("config", overrides=[*SMALL, f"runs_root={folder}", "study=ranks", *overrides])


if __name__ == "__main__":
    place = Path(sys.argv[1])
    told = {"refusal": refused(place), "notes": go_through(place)}
    torch.save(told, place / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
