"""Write a diagnosis for people, as text, and for programs, as what becomes JSON."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from flash_grpo.measure.diagnosis import Diagnosis
from flash_grpo.measure.needed import Size, sizes
from flash_grpo.measure.spending import Spending
from flash_grpo.measure.verdict import Asked, sentences, signal_per_forwards, verdict
from flash_grpo.run.build import planned
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.trainer import Trainer


def check(cfg: DictConfig, ranks: Ranks) -> None:
    """Raise ConfigError for what cannot be diagnosed, before a model is loaded."""
    if ranks.world_size > 1:
        raise ConfigError(
            f"diagnose runs in one process, and these are {ranks.world_size}: start it without a launcher"
        )
    layout = planned(cfg, ranks.world_size)[3]
    if layout.num_prompts < 2:
        raise ConfigError("rollout.layout.num_prompts=1: diagnose compares halves of the prompts; give at least 2")


def asked(trainer: Trainer, cost: Spending, gain: float) -> Asked:
    """Return what the sentences need to know of the configuration."""
    method = trainer.method
    return Asked(
        initial_noise=method.initial_noise,
        stochastic=method.needs.stochastic,
        ratio_clip=method.ratio_clip,
        max_gradient_norm=trainer.updater.stepper.max_gradient_norm,
        iteration_forwards=cost.iteration_forwards,
        gain=gain,
    )


def as_json(cfg: DictConfig, found: Diagnosis, question: Asked, cost: Spending) -> dict[str, Any]:
    """Return the configuration's name, all numbers, the verdict and its sentences. What is not finite is null."""
    gradient = found.gradient
    derived = {
        "ratio": gradient.ratio,
        "cosine": gradient.cosine,
        "norm": gradient.norm,
        "critical_prompts": gradient.critical_prompts(gradient.group_size),
        "resolved": gradient.resolved,
        "ratio_per_1000_forwards": signal_per_forwards(found, question),
    }
    table = sizes(gradient, found.reward, question.gain)
    numbers = asdict(found)
    numbers["gradient"] |= derived
    return _finite(
        {
            "kind": "diagnosis",
            "method": cfg.method.name,
            "noise": cfg.schedule.noise,
            "seed": cfg.seed,
            "iterations": cfg.diagnose.iterations,
            "cost": asdict(cost),
            **numbers,
            "sizes": [{**asdict(size), "rollouts": size.rollouts} for size in table],
            "verdict": verdict(found),
            "sentences": sentences(found, question),
        }
    )


def as_text(found: Diagnosis, question: Asked) -> str:
    """Return the numbers, a line each, a table of sizes, and the verdict with its sentences."""
    table = sizes(found.gradient, found.reward, question.gain)
    said = "\n".join(f"- {sentence}" for sentence in sentences(found, question))
    return "\n".join([*_numbers(found, question), *_sizes(table), "", f"verdict: {verdict(found)}", said])


def _numbers(found: Diagnosis, question: Asked) -> Iterator[str]:
    reward, gradient, weights = found.reward, found.gradient, found.weights
    low, tenth, median, ninetieth, high = reward.quantiles
    yield f"base reward       {reward.mean:.4g}, std {reward.std:.3g}, from {low:.4g} to {high:.4g}"
    yield f"                  10 % {tenth:.4g}, median {median:.4g}, 90 % {ninetieth:.4g}"
    yield f"spread in groups  std {reward.within**0.5:.3g}, between groups {reward.between**0.5:.3g}"
    yield f"without spread    {reward.without_spread:.0%} of the groups"
    yield f"siblings          {found.video_distance:.3g} grey levels apart"
    yield f"reward's noise    {found.repeated_noise:.1%} of the variance in groups, {found.nudged_noise:.1%} with nudged pixels"
    for source, share in found.shares.items():
        yield f"{'variance from':18s}{source.replace('_', ' ')}: {share.mean:.1%} ± {2 * share.error:.1%}"
    yield (
        f"gradient          signal {gradient.ratio:.3g} ± {2 * gradient.ratio_error:.2g} of the noise of an iteration "
        f"(cosine of halves {gradient.cosine:.3g}), {signal_per_forwards(found, question):.3g} for 1,000 forwards"
    )
    yield (
        f"weights           {weights.smallest:.2g} to {weights.largest:.2g}, as {weights.effective:.0%} of the steps equally "
        f"weighted; mean |advantage| {weights.advantage:.2g}"
    )
    yield f"before an update  ratios within {weights.drift:.2g} of 1, {weights.clipped:.0%} clipped; norm {gradient.norm:.2g}"


def _sizes(table: list[Size]) -> Iterator[str]:
    """Yield a line for each group size: the batch at which an iteration's gradient is half signal."""
    if all(math.isfinite(size.num_prompts) for size in table):
        bound = "or more" if table[0].at_least else "prompts x siblings"
        yield f"half signal at    {', '.join(f'{size.num_prompts:,.0f} x {size.group_size}' for size in table)} {bound}"


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
