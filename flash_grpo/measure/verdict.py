"""Say in sentences what a diagnosis means, as a function of its numbers alone: is the reward flat, why, and what to try."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flash_grpo.measure.diagnosis import Diagnosis
from flash_grpo.measure.needed import iterations_until_visible

IDENTICAL, NO_SPREAD, REWARD_NOISE, GRADIENT_NOISE, GOOD = (
    "identical siblings", "a reward without spread", "a reward of noise", "a gradient of noise", "good",
)  # fmt: skip
GREY_LEVEL = 1.0  # below one grey level of 255 two videos look the same, also to a reward
MOST = 0.5  # share from which one cause explains most
SOME = 0.1  # share from which it is worth a sentence
FLAT = 1e-5  # std within groups relative to the reward: a hundred roundings of float32


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the sentences need to know of the configuration besides its numbers."""

    initial_noise: str | float
    stochastic: bool
    """Whether the method trains stochastic steps."""

    ratio_clip: float | None
    max_gradient_norm: float
    """Infinite where gradients are not clipped."""

    iteration_forwards: float
    gain: float
    """That is to be seen, in units of the base reward's std."""


def verdict(found: Diagnosis) -> str:
    """Return the first of these that holds: one cause of a flat reward by name, or good."""
    if found.video_distance < GREY_LEVEL:
        return IDENTICAL
    if found.reward.without_spread >= MOST or found.reward.within**0.5 < FLAT * abs(found.reward.mean):
        return NO_SPREAD
    if max(found.repeated_noise, found.nudged_noise) >= MOST:
        return REWARD_NOISE
    return GOOD if found.gradient.resolved else GRADIENT_NOISE


def sentences(found: Diagnosis, asked: Asked) -> list[str]:
    """Return what the numbers mean, then what to try."""
    return [*_meaning(found, asked), *_until_visible(found, asked), *_to_try(found, asked)]


def signal_per_forwards(found: Diagnosis, asked: Asked) -> float:
    """Return the signal-to-noise ratio that a thousand forwards buy: of methods at batches below the critical one, the larger
    learns more for the same cost."""
    return 1000 * found.gradient.ratio / asked.iteration_forwards


def _meaning(found: Diagnosis, asked: Asked) -> Iterator[str]:
    name, reward = verdict(found), found.reward
    if name == IDENTICAL:
        yield (
            f"Flat, because the siblings do not differ: two videos of a prompt are {found.video_distance:.2g} grey levels (of "
            "255) apart, which nobody and no reward can see."
        )
    if name == NO_SPREAD:
        yield (
            f"Flat, because the reward does not see what differs: siblings are {found.video_distance:.0f} grey levels apart, "
            f"but {reward.without_spread:.0%} of the groups have one and the same reward, and the std within groups is "
            f"{reward.within**0.5:.2g}."
        )
    if name == REWARD_NOISE:
        yield (
            "Flat, because the reward is noise: of its variance within groups "
            f"{found.repeated_noise:.0%} changes when the same videos are scored again, {found.nudged_noise:.0%} when each "
            "pixel is moved by one grey level."
        )
    if name == GRADIENT_NOISE:
        yield _unresolved(found)
    if name == GOOD:
        yield _resolved(found, asked)


def _unresolved(found: Diagnosis) -> str:
    gradient = found.gradient
    prompts = gradient.fewest_prompts(gradient.group_size)
    return (
        "Flat, or slow, because the gradient is noise at this batch: no agreement between halves of batches was found. An "
        f"iteration's signal is at most {gradient.num_prompts / prompts:.2g} of its noise, so the gradient becomes half signal "
        f"at {_count(prompts)} prompts x {gradient.group_size} siblings or more, or over "
        f"{_count(prompts / gradient.num_prompts)} iterations or more; diagnose.iterations can be raised to find it."
    )


def _resolved(found: Diagnosis, asked: Asked) -> str:
    gradient, bought = found.gradient, signal_per_forwards(found, asked)
    prompts = _count(gradient.critical_prompts(gradient.group_size))
    return (
        "Good: siblings differ, the reward sees it, and halves of batches agree. An iteration's signal is "
        f"{gradient.ratio:.2g} of its noise ({bought:.2g} for 1,000 forwards), so the gradient is half signal at {prompts} "
        f"prompts x {gradient.group_size} siblings, or over {_count(1 / gradient.ratio)} iterations of this batch; beyond "
        "that more rollouts stop paying."
    )


def _until_visible(found: Diagnosis, asked: Asked) -> Iterator[str]:
    reward, gradient = found.reward, found.gradient
    if not reward.std:
        return
    count = iterations_until_visible(reward, asked.gain, gradient.num_prompts, gradient.group_size)
    yield (
        f"To see a gain of {asked.gain:g} of the base reward's std ({asked.gain * reward.std:.3g}) in the training reward, at "
        f"5 % and four times in five, {gradient.num_prompts} prompts x {gradient.group_size} siblings need {_count(count)} "
        "iterations over which it comes; half as many prompts need twice as many."
    )


def _to_try(found: Diagnosis, asked: Asked) -> Iterator[str]:
    """Yield settings to try, the most important first."""
    name = verdict(found)
    if name == IDENTICAL:
        yield "Try a larger schedule.noise_level, or method.initial_noise=independent."
        return
    if name == NO_SPREAD:
        yield "Try another reward (reward=...), or prompts on which this one varies: no method can learn from equal rewards."
        return
    yield from _about_the_reward(found)
    yield from _about_the_batch(found, asked)
    yield from _about_the_update(found, asked)


def _about_the_reward(found: Diagnosis) -> Iterator[str]:
    noise = max(found.repeated_noise, found.nudged_noise)
    if noise >= SOME:
        yield (
            f"{noise:.0%} of the reward's variance within groups is noise of the reward itself: try a reward that answers the "
            "same video twice alike, or a mean of several (reward=composite)."
        )
    if found.reward.without_spread >= SOME:
        yield (
            f"{found.reward.without_spread:.0%} of the groups have one and the same reward and train nothing: try a finer "
            "reward or more siblings (rollout.layout.group_size)."
        )


def _about_the_batch(found: Diagnosis, asked: Asked) -> Iterator[str]:
    gradient, initial = found.gradient, found.shares["initial_noise"]
    if asked.stochastic and asked.initial_noise == "independent" and initial.mean - 2 * initial.error > MOST:
        yield (
            f"{initial.mean:.0%} of the reward's variance within groups comes from the initial noise, which a trained step "
            "cannot be credited for: try method.initial_noise=shared (ablations=shared_noise)."
        )
    critical = gradient.critical_prompts(gradient.group_size)
    if gradient.resolved and gradient.num_prompts > 2 * critical:
        yield f"The batch is beyond the critical one: try rollout.layout.num_prompts={max(math.ceil(critical), 2)}."
    elif verdict(found) == GRADIENT_NOISE:
        yield "Try more prompts (rollout.layout.num_prompts), or more iterations at a smaller optim.optimizer.lr."


def _about_the_update(found: Diagnosis, asked: Asked) -> Iterator[str]:
    weights = found.weights
    if weights.clipped:
        yield (
            f"Ratios differ from 1 by up to {weights.drift:.2g} before any update, and {weights.clipped:.0%} of the steps are "
            f"clipped (method.ratio_clip={asked.ratio_clip:g}): rollout and update compute a step differently; try "
            "rollout.batch equal to training.batch, model.compile=false, or a larger method.ratio_clip."
        )
    if weights.effective < MOST:
        yield (
            f"The weights, {weights.smallest:.2g} to {weights.largest:.2g}, make the update as noisy as "
            f"{weights.effective:.0%} of its steps would with equal weights: try "
            "method.weigh._target_=flash_grpo.algorithm.weighting.uniform."
        )
    if found.gradient.norm > asked.max_gradient_norm:
        yield (
            f"The gradient's norm is {found.gradient.norm:.2g}, above optim.max_gradient_norm={asked.max_gradient_norm:g}: the "
            "length of a step is set by its noise, and only more signal makes it go further."
        )


def _count(value: float) -> str:
    """Return a count with two significant digits, in words where it has no end."""
    if not math.isfinite(value):
        return "infinitely many"
    digits = max(len(str(math.ceil(value))) - 2, 0)
    return f"{math.ceil(value / 10**digits) * 10**digits:,}"
