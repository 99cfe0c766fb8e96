"""What test_ranks.py starts with torchrun, and goes through in its own process too: a small run that notes its rollouts."""

import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from conftest import SMALL
from damage import flipped
from hydra import compose, initialize_config_dir

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import Scores
from flash_grpo.run import build, checkpoint, loop, stop
from flash_grpo.run.compose import CONF
from flash_grpo.tiny_world.reward import ShapesReward
from flash_grpo.training import awaited, evaluated_part
from flash_grpo.training.trainer import Trainer

CHOSEN = (
    "ablations=no_iso_temporal",
    "training.optimizer_steps=2",
    "method.kl_weight=0.004",
    "reward@evaluation.held_out=fidelity",
    "checkpoint.best_by=held_out",
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
    build.Trainer, NotingTrainer.notes, NotingTrainer.asked_to_stop = NotingTrainer, {}, False
    for iterations in (1, 4, 4):
        with suppress(stop.Interrupted):
            loop.run(_config(folder, *CHOSEN, *overrides, f"budget.iterations={iterations}"), "run")
    build.Trainer = Trainer
    return NotingTrainer.notes


def goes_on_without_damaged_results(folder: Path) -> None:
    """The same run, left in the middle of its third iteration, of which the last rank's results are then damaged."""
    build.Trainer, NotingTrainer.asked_to_stop = NotingTrainer, False
    chosen = [*CHOSEN, "budget.iterations=4", "checkpoint.every=1"]
    with suppress(stop.Interrupted):
        loop.run(_config(folder, *chosen), "damaged")
    build.Trainer = Trainer
    file = folder / "ranks/damaged/checkpoints/000002+001/rank001.pt"
    if torch.distributed.get_rank() == 0:
        file.write_bytes(flipped(file.read_bytes(), file.stat().st_size // 2, 1))
    torch.distributed.barrier()
    loop.run(_config(folder, *chosen), "damaged")


class Failing:
    """Scores that will never come."""

    def ready(self):
        return True

    def get(self):
        raise RewardError("no answer")


def fails_on_the_last_rank(folder: Path) -> tuple[list[str], list[str]]:
    """What this rank raised and what was saved where the last rank's reward fails: in an iteration, in an evaluation."""
    raised, saved = [], []
    for module, name in ((awaited, "training"), (evaluated_part, "evaluation")):
        ask, calls = module.ask, []

        def failing(*arguments, ask=ask, calls=calls):
            calls.append(arguments)
            here = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
            return Failing() if here and len(calls) == 2 else ask(*arguments)

        module.ask = failing
        layout = ["rollout.batch=2", "rollout.layout.num_prompts=4", "rollout.layout.group_size=2"]
        chosen = [*layout, "evaluation.sampler.batch=8", "budget.iterations=1", f"run_name={name}"]
        for _ in range(2):
            try:
                loop.run(_config(folder, *chosen), name)
                raised.append("")
            except RewardError as error:
                raised.append(str(error))
                saved.append(checkpoint.complete(folder / "ranks" / name)[-1].name)
            module.ask = ask
    return raised, saved


def rubbish_on_the_last_rank(folder: Path) -> list[str]:
    """What this rank raised where the last rank's reward returns None in an iteration, or other parts in an evaluation."""
    raised, score = [], ShapesReward.__call__
    here = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    for name, good_calls, rubbish in (("none", 1, None), ("parts", 0, "other parts")):
        calls = []

        def spoilt(self, video, text, calls=calls, good_calls=good_calls, rubbish=rubbish):
            calls.append(text)
            if not here or len(calls) <= good_calls:
                return score(self, video, text)
            return rubbish and Scores(total_B=torch.ones(len(text)), parts={"other": torch.ones(len(text))})

        ShapesReward.__call__ = spoilt
        try:
            loop.run(_config(folder, "evaluation.sampler.batch=64", f"run_name={name}"), name)
        except RewardError as error:
            raised.append(str(error))
        ShapesReward.__call__ = score
    return raised


def refused(folder: Path) -> str:
    """How three rollouts on two ranks are refused."""
    try:
        loop.claim(_config(folder, "rollout.layout.num_prompts=1", "rollout.layout.group_size=3"), "refused")
    except build.ConfigError as error:
        return str(error)
    return "not refused"


def _config(folder: Path, *overrides: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", overrides=[*SMALL, f"runs_root={folder}", "study=ranks", *overrides])


if __name__ == "__main__":
    place = Path(sys.argv[1])
    report = {"refusal": refused(place), "notes": go_through(place), "failed": fails_on_the_last_rank(place)}
    goes_on_without_damaged_results(place)
    report["rubbish"] = rubbish_on_the_last_rank(place)
    torch.save(report, place / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
