"""Measure a rollout, its decoding, a reward and its update at the size of a real model, with random weights.

The trainer's own rollout and update run on random weights of the configured architecture, so no file is needed; the reward
is a stub. TFLOP/s count all that is computed: forwards, backwards, and what gradient checkpointing computes again. To make
it faster: schedule.num_steps=2 method.plan.last_step=1, model.frames=17, bench.repeats=1.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.denoise import Denoised
from flash_grpo.algorithm.experts import experts_of
from flash_grpo.measure.stopwatch import digits, forget_peak, peak_gigabytes, seconds
from flash_grpo.run import compose
from flash_grpo.run.build import device, prepare_trainer
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.rollouts import joined_rollouts
from flash_grpo.training.trainer import Trainer


@dataclass(frozen=True)
class Phase:
    """A phase of an iteration. run: executes it once. flops: how many it needs, None if they are not counted."""

    run: Callable[[], object]
    flops: float | None = None


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Return the model's sizes and, for each phase, seconds, peak memory and TFLOP/s.

    Seconds are medians over `bench.repeats` after one repeat that is not counted.
    """
    trainer = prepare_trainer(_without_files(cfg), Ranks(device(cfg)))
    policy, where = trainer.policy, trainer.ranks.device
    phases, sizes, ratios = _phases(trainer, cfg.bench.batch)
    measured = {name: _measured(phase, where, cfg.bench.repeats) for name, phase in phases.items()}
    wan: Any = policy
    parameters = [parameter for transformer in wan.transformers.values() for parameter in transformer.parameters()]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    return {
        "model": cfg.model.path,
        "weights": "random",
        "method": trainer.method.name,
        "shape": {key: cfg.model[key] for key in ("frames", "height", "width")} | {"batch": sizes["batch"]},
        "latent": list(policy.latent_shape),
        "steps": len(trainer.schedule),
        "transitions": sizes["transitions"],
        "parameters": sum(parameter.numel() for parameter in frozen),
        "trainable": sum(parameter.numel() for parameter in policy.trainable().values()),
        "tflop_per_forward": digits(policy.flops.forward / 1e12),
        "tflop_per_backward": digits((policy.flops.backward + policy.flops.recompute) / 1e12),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "dtype": cfg.model.dtype,
        "attention": cfg.model.attention,
        "compile": cfg.model.compile,
        "torch": torch.__version__,
        "ratio_drift": float((ratios[0] - 1).abs().max()),
        "phases": measured,
    }


def _phases(trainer: Trainer, count: int) -> tuple[dict[str, Phase], dict[str, int], list[torch.Tensor]]:
    """Return the phases of an iteration of at most `count` rollouts, by name; its counts of rollouts and transitions; and a
    list to which each update adds its ratios of new to old policy, first those before any update.
    """
    policy, maker = trainer.policy, trainer.rollouts
    batch = trainer.batch(1).rows(torch.arange(count))
    routes = [(route, policy.encode(route.batch.text)) for route in maker.routes(batch)]

    def rollout() -> list[Denoised]:
        return [maker.denoised(route, condition_BMD) for route, condition_BMD in routes]

    denoised = rollout()
    latent_BCFHW = torch.cat([made.latent_BCFHW for made in denoised])
    decoded = [maker.decoded(route.batch, text, made) for (route, text), made in zip(routes, denoised, strict=True)]
    rollouts = joined_rollouts(batch, decoded)
    video_BFHWC, condition_BMD = rollouts.video_BFHWC, rollouts.condition_BMD
    steps = trainer.updater.steps(rollouts, torch.ones(batch.num_prompts, batch.group_size))

    ratios = list[torch.Tensor]()

    def update() -> None:
        terms = trainer.updater.backward(steps, condition_BMD, torch.ones(len(steps)), len(steps), "measured ")
        ratios.append(torch.cat([term.ratio_N for term in terms]))
        trainer.journal.done.clear()
        trainer.updater.stepper.apply_gradients(torch.ones(len(experts_of(policy))))

    forward, trained = policy.evaluations_per_velocity, trainer.updater.replayer.policy.evaluations_per_velocity
    of_update = trained * (policy.flops.forward + policy.flops.backward + policy.flops.recompute)
    phases = {
        "rollout": Phase(rollout, sum(made.velocities for made in denoised) * forward * policy.flops.forward),
        "decode": Phase(lambda: policy.decode(latent_BCFHW), len(batch) * policy.flops.decode),
        "reward": Phase(lambda: maker.reward(video_BFHWC, batch.text)),
        "update": Phase(update, len(steps.taken.x_SCFHW) * of_update),
    }
    return phases, {"batch": len(batch), "transitions": len(steps)}, ratios


def _without_files(cfg: DictConfig) -> DictConfig:
    """Return the configuration with random weights, with LoRA, and with nothing that would have to be downloaded."""
    chosen = copy.deepcopy(cfg)
    OmegaConf.set_struct(chosen, False)
    stubs = compose.composed(["optim=lora", "reward=brightness", "prompts=shapes"])
    chosen.reward, chosen.prompts = stubs.reward, stubs.prompts
    if not chosen.optim.lora:
        chosen.optim = stubs.optim
    chosen.model.weights = "random"
    chosen.rollout.batch = chosen.training.batch = cfg.bench.batch
    return chosen


def _measured(phase: Phase, where: torch.device, repeats: int) -> dict[str, Any]:
    gpu = where.type == "cuda"
    phase.run()
    forget_peak(gpu)
    took = median(seconds(phase.run, gpu) for _ in range(repeats))
    return {
        "seconds": digits(took),
        "peak_gigabytes": peak_gigabytes(gpu),
        "tflop_per_second": digits(phase.flops / took / 1e12) if phase.flops else None,
    }
