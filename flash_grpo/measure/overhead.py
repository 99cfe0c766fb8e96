"""Time an iteration beside its unavoidable parts: forwards, backwards, decoding and the reward at the same batches."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig

from flash_grpo.algorithm.types import Rollouts
from flash_grpo.run.build import device, prepare_trainer
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.trainer import Trainer

REPEATS = 8


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Return median seconds of an iteration and of each part, and `overhead`, the median ratio of iteration to parts."""
    trainer = prepare_trainer(cfg, Ranks(device(cfg)))
    parts = _unavoidable_parts(trainer)
    trainer.iterate(1)  # not counted: the first one allocates
    measured: dict[str, list[float]] = {name: [] for name in ("iteration", *parts)}
    for repeat in range(REPEATS):
        measured["iteration"].append(_seconds(lambda repeat=repeat: trainer.iterate(2 + repeat)))
        for name, part in parts.items():
            measured[name].append(_seconds(part))
    unavoidable = [sum(measured[name][repeat] for name in parts) for repeat in range(REPEATS)]
    ratios = [whole / unavoided for whole, unavoided in zip(measured["iteration"], unavoidable, strict=True)]
    return {
        "model": cfg.model.path,
        "method": cfg.method.name,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        "seconds": {name: round(median(values), 5) for name, values in measured.items()},
        "unavoidable_seconds": round(median(unavoidable), 5),
        "overhead": round(median(ratios), 4),
    }


def _unavoidable_parts(trainer: Trainer) -> Mapping[str, Callable[[], object]]:
    """Return what every implementation of an iteration must compute, by name, ready to be called."""
    text_P = trainer.prompts.drawn(1, trainer.layout.num_prompts, trainer.seed)
    rollouts = trainer.rollout(trainer.layout.batch(1, text_P, trainer.ranks.rank))
    latent_BCFHW = torch.randn(len(rollouts.batch), *trainer.policy.latent_shape).to(rollouts.condition_BMD.device)
    return {
        "forwards": lambda: _forwards(trainer, latent_BCFHW, rollouts.condition_BMD),
        "update": lambda: _update(trainer, rollouts),
        "decode": lambda: [trainer.policy.decode(chunk) for chunk in latent_BCFHW.split(trainer.rollout_batch)],
        "reward": lambda: trainer.reward(rollouts.video_BFHWC, rollouts.batch.text),
    }


@torch.no_grad()
def _forwards(trainer: Trainer, x_BCFHW: torch.Tensor, condition_BMD: torch.Tensor) -> None:
    """Compute as many velocities as a rollout asks for."""
    for timestep in trainer.schedule.timestep_T:
        for rows in torch.arange(len(x_BCFHW)).split(trainer.rollout_batch):
            trainer.policy.velocity(x_BCFHW[rows], timestep.expand(len(rows)), condition_BMD[rows])


def _update(trainer: Trainer, rollouts: Rollouts) -> None:
    """Compute a forward and a backward of every trained transition."""
    transitions = rollouts.transitions
    for rows in torch.arange(len(transitions)).split(trainer.update_batch):
        timestep_N = trainer.schedule.timestep_T[transitions.step_N[rows]]
        condition_NMD = rollouts.condition_BMD[transitions.rollout_N[rows]]
        x_NCFHW = transitions.x_NCFHW[rows].to(condition_NMD.device)
        trainer.policy.velocity(x_NCFHW, timestep_N, condition_NMD).square().mean().backward()
    trainer.optimizer.zero_grad()


def _seconds(function: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
