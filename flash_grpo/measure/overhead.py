"""Time an iteration and, separately, its unavoidable parts: forwards, backwards, decoding and reward at the same batches."""

import itertools
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig

from flash_grpo.algorithm.experts import experts_of
from flash_grpo.algorithm.noise import noise_keys
from flash_grpo.algorithm.paths import Route, on_places
from flash_grpo.algorithm.types import Rollouts
from flash_grpo.run.build import device, prepare_trainer
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.trainer import Trainer

REPEATS = 8


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Return median seconds of an iteration and of each part, and `overhead`, the median ratio of iteration to parts."""
    trainer = prepare_trainer(cfg, Ranks(device(cfg)))
    parts = _unavoidable_parts(trainer)
    trainer.iterate(1)  # not counted: the first iteration also allocates memory and encodes the texts
    measured: dict[str, list[float]] = {name: [] for name in ("iteration", *parts)}
    for _ in range(REPEATS):
        measured["iteration"].append(_seconds(lambda: trainer.iterate(1)))
        for name, part in parts.items():
            measured[name].append(_seconds(part))
    unavoidable = [sum(measured[name][repeat] for name in parts) for repeat in range(REPEATS)]
    iteration_and_parts = zip(measured["iteration"], unavoidable, strict=True)
    ratios = [iteration / parts for iteration, parts in iteration_and_parts]
    return {
        "model": cfg.model.get("path", cfg.model._target_),
        "method": cfg.method.name,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        "seconds": {name: round(median(values), 5) for name, values in measured.items()},
        "unavoidable_seconds": round(median(unavoidable), 5),
        "overhead": round(median(ratios), 4),
    }


def _unavoidable_parts(trainer: Trainer) -> Mapping[str, Callable[[], object]]:
    """Return functions, by name, that compute what every implementation of an iteration must compute."""
    batch, maker = trainer.batch(1), trainer.rollouts
    computed = [_computed(trainer, route) for route in maker.routes(batch)]
    rollouts = maker.all(batch)
    latent_BCFHW = torch.randn(len(rollouts.batch), *trainer.policy.latent_shape).to(rollouts.condition_BMD.device)
    return {
        "forwards": lambda: _forwards(trainer, computed, latent_BCFHW, rollouts.condition_BMD),
        "update": lambda: _update(trainer, rollouts),
        "decode": lambda: [trainer.policy.decode(chunk) for chunk in latent_BCFHW.split(maker.at_once)],
        "reward": lambda: maker.reward(rollouts.video_BFHWC, rollouts.batch.text),
    }


def _computed(trainer: Trainer, route: Route) -> list[tuple[torch.Tensor, int]]:
    """Return the timestep and the number of distinct states of each step of a route."""
    states: list[int] = []
    keys = noise_keys(route.batch, trainer.seed, trainer.method.initial_noise, trainer.method.tree)
    condition_BMD = trainer.policy.encode(route.batch.text)
    trainer.rollouts.denoised(route, condition_BMD, after_step=lambda now: states.append(len(now.x_SCFHW)))
    timestep_T = on_places(trainer.schedule, route.place_S).timestep_T
    return list(zip(timestep_T, [len(set(keys.initial_B)), *states[:-1]], strict=True))


@torch.no_grad()
def _forwards(
    trainer: Trainer,
    computed: list[list[tuple[torch.Tensor, int]]],
    x_BCFHW: torch.Tensor,
    condition_BMD: torch.Tensor,
) -> None:
    """Compute as many velocities as the rollouts need: one for each distinct state and step. computed: of each route."""
    for timestep, states in itertools.chain(*computed):
        for rows in torch.arange(states).split(trainer.rollouts.at_once):
            trainer.policy.velocity(x_BCFHW[rows], timestep.expand(len(rows)), condition_BMD[rows])


def _update(trainer: Trainer, rollouts: Rollouts) -> None:
    """Compute a forward and a backward for every distinct state that is trained."""
    ones_PG = torch.ones(rollouts.batch.num_prompts, rollouts.batch.group_size)
    transitions = trainer.updater.steps(rollouts, ones_PG).taken
    of_state_S = trainer.schedule.timestep_T[transitions.step_S]
    for rows in experts_of(trainer.policy).rows(of_state_S, trainer.updater.at_once):
        timestep_S = of_state_S[rows]
        condition_SMD = rollouts.condition_BMD[transitions.rollout_S[rows]]
        x_SCFHW = transitions.x_SCFHW[rows].to(condition_SMD.device)
        trainer.updater.replayer.policy.velocity(x_SCFHW, timestep_S, condition_SMD).square().mean().backward()
    trainer.updater.stepper.optimizer.zero_grad()


def _seconds(function: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
