"""`python -m flash_grpo.bench model=tiny method=flash`: what an iteration costs beside what it cannot do without, as JSON.

The unavoidable parts are the transformer's forwards and backwards at the same batches, decoding and the reward. They are
timed in turn with whole iterations, so that a busy machine slows both; `overhead` is the median of their ratios.
"""

import json
import time
from collections.abc import Callable
from statistics import median

import torch
from omegaconf import DictConfig

from flash_grpo import cli
from flash_grpo.algorithm.types import Rollouts

REPEATS = 8


def bench(cfg: DictConfig) -> None:
    if "architecture" in cfg.model:  # too large for whole iterations here: its parts, with random weights
        from flash_grpo.measure.real_size import measure

        print(json.dumps(measure(cfg), indent=1))
        return
    from flash_grpo.run.build import device, prepare_trainer
    from flash_grpo.training.ranks import Ranks

    trainer = prepare_trainer(cfg, Ranks(device(cfg)))
    text_P = trainer.prompts.drawn(1, trainer.layout.num_prompts, trainer.seed)
    rollouts = trainer.rollout(trainer.layout.batch(1, text_P, trainer.ranks.rank))
    latent_BCFHW = torch.randn(len(rollouts.batch), *trainer.policy.latent_shape).to(rollouts.condition_BMD.device)
    parts = {
        "forwards": lambda: _forwards(trainer, latent_BCFHW, rollouts.condition_BMD),
        "update": lambda: _update(trainer, rollouts),
        "decode": lambda: _in_batches(trainer.rollout_batch, trainer.policy.decode, latent_BCFHW),
        "reward": lambda: trainer.reward(rollouts.video_BFHWC, rollouts.batch.text),
    }
    trainer.iterate(1)
    measured = {name: [] for name in ("iteration", *parts)}
    for repeat in range(REPEATS):
        measured["iteration"].append(_seconds(lambda repeat=repeat: trainer.iterate(2 + repeat)))
        for name, part in parts.items():
            measured[name].append(_seconds(part))
    seconds = {name: median(values) for name, values in measured.items()}
    unavoidable = [sum(measured[name][repeat] for name in parts) for repeat in range(REPEATS)]
    ratios = [
        iteration / parts_of_it for iteration, parts_of_it in zip(measured["iteration"], unavoidable, strict=True)
    ]
    result = {
        "model": cfg.model.path,
        "method": cfg.method.name,
        "device": _device_name(),
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "unavoidable_seconds": round(median(unavoidable), 5),
        "overhead": round(median(ratios), 4),
    }
    print(json.dumps(result, indent=1))


@torch.no_grad()
def _forwards(trainer, x_BCFHW: torch.Tensor, condition_BMD: torch.Tensor) -> None:
    """As many velocities as the rollout asks for."""
    for timestep in trainer.schedule.timestep_T:
        for rows in torch.arange(len(x_BCFHW)).split(trainer.rollout_batch):
            trainer.policy.velocity(x_BCFHW[rows], timestep.expand(len(rows)), condition_BMD[rows])


def _update(trainer, rollouts: Rollouts) -> None:
    """A forward and a backward of every trained transition."""
    taken = rollouts.transitions
    for rows in torch.arange(len(taken)).split(trainer.update_batch):
        timestep_N = trainer.schedule.timestep_T[taken.step_N[rows]]
        condition = rollouts.condition_BMD[taken.rollout_N[rows]]
        x = taken.x_NCFHW[rows].to(condition.device)
        trainer.policy.velocity(x, timestep_N, condition).square().mean().backward()
    trainer.optimizer.zero_grad()


def _in_batches(size: int, function: Callable, value_B: torch.Tensor) -> None:
    for chunk in value_B.split(size):
        function(chunk)


def _seconds(function: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


main = cli.command(bench)

if __name__ == "__main__":
    main()
