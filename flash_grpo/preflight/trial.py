"""Try one micro-batch of each phase where a run would be, on all its ranks, and measure what the run depends on."""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import PromptBatch, Rollouts
from flash_grpo.measure.stopwatch import digits, forget_peak, peak_gigabytes, seconds
from flash_grpo.preflight.servers import looked_at, served
from flash_grpo.run import checkpoint
from flash_grpo.run.build import device, prepare_trainer
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.rollouts import joined_rollouts
from flash_grpo.training.trainer import Trainer

T = TypeVar("T")
log = logging.getLogger(__name__)
COLLECTIVE_BYTES, COLLECTIVES = 2**26, 5  # of an all-reduce, about the gradients of a LoRA; and how many are timed
GIVE_UP_S = 60.0  # a reward server that gives no answer for so long is not there
MOST_S = 300.0  # that all ranks together wait for the scores of one micro-batch


@dataclass(kw_only=True)
class Stages:
    """What each stage of the trial took: seconds and peak memory, each the largest over the ranks. now: under way."""

    ranks: Ranks
    took: dict[str, dict[str, float | None]] = field(default_factory=dict)
    now: str = "start"

    def measure(self, name: str, run: Callable[[], T]) -> T:
        """Do the work of a stage, which all ranks begin together, and return its result."""
        made, gpu = list[T](), self.ranks.device.type == "cuda"
        self.now = name
        self.ranks.barrier()
        forget_peak(gpu)
        mine = torch.tensor([seconds(lambda: made.append(run()), gpu), peak_gigabytes(gpu) or 0.0])
        wall, peak = (digits(value) for value in self.ranks.max(mine).tolist())
        self.took[name] = {"seconds": wall, "peak_gigabytes": peak or None}
        if self.ranks.is_main:
            log.info("preflight: %s took %g s", name, wall)
        return made[0]


def trial(plain: dict[str, Any], folder: str) -> dict[str, Any]:
    """Measure on every rank; return the same numbers on each, as plain values.

    plain: the run's configuration. folder: for a checkpoint, which is deleted again. If a stage fails, `failed` says which,
    and why.
    """
    cfg = OmegaConf.create(plain)
    ranks = Ranks(device(cfg))
    stages = Stages(ranks=ranks)
    found: dict[str, Any] = {
        "run": cfg.run_name,
        "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
        "ranks": ranks.world_size,
        "dtype": cfg.model.get("dtype"),
        "attention": cfg.model.get("attention"),
        "compile": cfg.model.get("compile"),
        "torch": torch.__version__,
        "stages": stages.took,
    }
    try:
        _measured(cfg, Path(folder), stages, found)
    except Exception as error:  # whatever it is, the run would meet it too
        log.exception("preflight: %s", stages.now)
        found["failed"] = {"stage": stages.now, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return found


def _measured(cfg: DictConfig, folder: Path, stages: Stages, found: dict[str, Any]) -> None:
    began = time.perf_counter()
    trainer = stages.measure("loading", lambda: prepare_trainer(_soon_given_up(cfg), stages.ranks))
    batch = _micro_batch(trainer)
    stages.measure("texts", lambda: trainer.policy.prefetch(batch.text))
    _warm_up(trainer, batch)
    trainer.meter.settle()
    rollouts = _rollouts(trainer, batch, stages, found)
    found["servers"] = stages.ranks.from_main(looked_at(cfg, rollouts.video_BFHWC, batch.text, stages.ranks.is_main))
    if not any(server["failure"] for server in found["servers"] if server["key"].startswith("reward")):
        found["reward_failure"] = stages.measure("reward", lambda: _scored(trainer, rollouts))
    found["videos"] = len(batch)
    _update(trainer, rollouts, stages, found)
    found["collective_gigabytes_per_second"] = _bandwidth(stages)
    found["checkpoint_gigabytes"] = stages.measure("checkpoint", partial(_saved, trainer, rollouts, folder))
    found["seconds"] = digits(time.perf_counter() - began)


def _soon_given_up(cfg: DictConfig) -> DictConfig:
    """Return the configuration with reward servers that are not waited for as long as a run waits."""
    chosen = cfg.copy()
    for key in ("reward", "evaluation.held_out"):
        for _, node in served(OmegaConf.select(chosen, key), key):
            node.give_up_after, node.max_wait = min(GIVE_UP_S, node.give_up_after), min(MOST_S, node.max_wait)
    return chosen


def _micro_batch(trainer: Trainer) -> PromptBatch:
    """Return the first of this rank's rollouts, as many as are made at once."""
    batch = trainer.batch(1)
    return batch.rows(torch.arange(min(trainer.rollouts.at_once, len(batch))))


@torch.no_grad()
def _warm_up(trainer: Trainer, batch: PromptBatch) -> None:
    """Evaluate one velocity, so that no stage pays for what only the first one does, as compiling."""
    condition_BMD = trainer.policy.encode(batch.text)
    x_BCFHW = torch.zeros(len(batch), *trainer.policy.latent_shape).to(condition_BMD.device)
    trainer.rollouts.policy.velocity(x_BCFHW, trainer.schedule.timestep_T[:1].expand(len(batch)), condition_BMD)


def _rollouts(trainer: Trainer, batch: PromptBatch, stages: Stages, found: dict[str, Any]) -> Rollouts:
    """Make and decode the micro-batch, each a stage, and count a rank's forwards."""
    maker, ranks = trainer.rollouts, stages.ranks

    def latents() -> list[tuple[PromptBatch, torch.Tensor, Any]]:
        with trainer.journal.section(maker.keep_up):
            routes = [(route, trainer.policy.encode(route.batch.text)) for route in maker.routes(batch)]
            return [(route.batch, text, maker.denoised(route, text)) for route, text in routes]

    made = stages.measure("rollout", latents)
    trainer.meter.settle()
    found["rollout_forwards"] = trainer.meter.cost.forward_evaluations / ranks.world_size
    decoded = stages.measure("decode", lambda: [maker.decoded(*part) for part in made])
    return joined_rollouts(batch, decoded)


def _scored(trainer: Trainer, rollouts: Rollouts) -> str:
    """Have every rank's videos scored at once, as in a run; return why that fails, '' if it does not."""
    try:
        trainer.rollouts.reward(rollouts.video_BFHWC, rollouts.batch.text)
        return ""
    except RewardError as error:
        return str(error)


def _update(trainer: Trainer, rollouts: Rollouts, stages: Stages, found: dict[str, Any]) -> None:
    """Train a micro-batch of transitions twice: first to warm up, which also shows the drift, then to be measured."""
    some, updater, ranks = _some_transitions(trainer, rollouts), trainer.updater, stages.ranks
    updater.train_fraction = 1.0  # of a group that is not whole
    sign_G = torch.ones(some.batch.group_size)
    sign_G[1::2] = -1
    advantage_PG = sign_G.repeat(some.batch.num_prompts, 1)

    def train() -> torch.Tensor:
        trainer.journal.done.clear()
        return trainer.update(some, advantage_PG).first_ratio_N

    ratio_N = stages.measure("first update", train)
    drift = (ratio_N - 1).abs().max() if len(ratio_N) else torch.tensor(0.0)
    found["ratio_drift"] = float(ranks.max(drift))
    trainer.meter.settle()
    before = trainer.meter.cost
    stages.measure("update", train)
    trainer.journal.done.clear()
    trainer.meter.settle()
    for count in ("forward_evaluations", "backward_evaluations"):
        made = getattr(trainer.meter.cost, count) - getattr(before, count)
        found[f"update_{count}"] = made / ranks.world_size


def _some_transitions(trainer: Trainer, rollouts: Rollouts) -> Rollouts:
    """Return the rollouts with a micro-batch of their transitions, from all steps; all where the target needs siblings."""
    needs, count = trainer.method.needs, len(rollouts.transitions)
    if needs.siblings or needs.where == "x_0":
        return rollouts
    row_N = torch.linspace(0, count - 1, min(count, trainer.updater.at_once)).round().long().unique()
    return replace(rollouts, transitions=rollouts.transitions.chosen(row_N))


def _bandwidth(stages: Stages) -> float | None:
    """Return the GB/s of each rank in a ring's all-reduce; None of one rank."""
    ranks = stages.ranks
    if ranks.world_size == 1:
        return None
    numbers = torch.ones(COLLECTIVE_BYTES // 4, device=ranks.device)
    ranks.sum(numbers)
    stages.measure("all-reduce", lambda: [ranks.sum(numbers) for _ in range(COLLECTIVES)])
    sent = COLLECTIVES * COLLECTIVE_BYTES * 2 * (ranks.world_size - 1) / ranks.world_size
    return digits(sent / 1e9 / (stages.took["all-reduce"]["seconds"] or 1e-9))


def _saved(trainer: Trainer, rollouts: Rollouts, folder: Path) -> float:
    """Save as in the middle of an iteration, with what each rank has made, and return the GB that all ranks wrote."""
    place, ranks = folder / "checkpoint", trainer.ranks
    mine = {**trainer.unfinished(), "done": {"rollouts/0": rollouts}}
    checkpoint.save_mid_iteration(place, 1, trainer.state, mine, 1, ranks)
    size = sum(path.stat().st_size for path in place.rglob("*.pt")) if ranks.is_main else 0
    ranks.barrier()
    if ranks.is_main:
        shutil.rmtree(place)
    return float(ranks.from_main(size)) / 1e9
