"""Tell what a run needs beside its devices: the host's memory, space on disk, time to save in."""

from dataclasses import dataclass
from math import prod

from flash_grpo.planning.memory import ENCODER, Load, conditions, latent
from flash_grpo.planning.model import Model

PROCESS, PROCESS_CPU = 3.0e9, 0.8e9  # a rank's interpreter and libraries, with CUDA's; assumed


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What one rank has at the end of an iteration's rollouts. states, steps: its trained states, and steps from them.

    waiting: videos that may not be scored yet.
    """

    rollouts: int
    states: float
    steps: float
    waiting: int


def videos(model: Model, count: int) -> float:
    """Return the bytes of decoded videos, uint8."""
    return float(count * prod(model.video_shape))


def transitions(model: Model, rank: Rank, kept_target: int) -> float:
    """Return the bytes of a rank's trained steps, on the host: each state's latent and, if the target needs it, each end."""
    return latent(model) * (rank.states + (kept_target - 1) * rank.steps)


def host(model: Model, load: Load, rank: Rank, on_cpu: bool, device_peak: float) -> dict[str, float]:
    """Return the terms of one rank's memory on its host, at its largest.

    Weights are read there as a whole before they go to the device; the text encoder stays there once the texts are encoded. On
    a CPU the device's memory is the host's.
    """
    process = {"process": PROCESS_CPU if on_cpu else PROCESS}
    reading = {"weights while they are read": float(model.compute * model.wan.parameters()) if model.wan else 0.0}
    at_work = {
        "device's own": device_peak if on_cpu else 0.0,
        "text encoder": float(ENCODER * model.compute) if model.real else 0.0,
        "kept transitions": transitions(model, rank, load.kept_target),
        "videos": videos(model, rank.waiting),
    }
    return process | max(reading, at_work, key=lambda terms: sum(terms.values()))


def checkpoint(model: Model) -> float:
    """Return the bytes of a checkpoint between two iterations: trained weights, AdamW's two numbers, the EMA, float32 each."""
    return 16.0 * model.trainable


def mid_iteration(model: Model, load: Load, rank: Rank) -> float:
    """Return the bytes of a checkpoint in the middle of an iteration, at its largest: every rank adds what it has made."""
    mine = transitions(model, rank, load.kept_target) + conditions(model, rank.rollouts) + videos(model, rank.waiting)
    return checkpoint(model) + load.ranks * mine


def disk(model: Model, load: Load, rank: Rank, keep: int) -> float:
    """Return the bytes of a run's checkpoints: those that stay, one that is written, one in the middle of an iteration."""
    return (keep + 1) * checkpoint(model) + mid_iteration(model, load, rank)


def saving_seconds(model: Model, load: Load, rank: Rank, gigabytes_per_second: float, piece: float) -> float:
    """Return how long a run takes to leave: the longest piece of work that it finishes first, and the writing of what it has.

    piece: seconds of that work. All ranks write to one file system.
    """
    return piece + mid_iteration(model, load, rank) / (1e9 * gigabytes_per_second)


def embeddings(model: Model, texts: int) -> float:
    """Return the most that the cache of text embeddings grows by: every text at full length. All runs share it."""
    if not (model.text_cached and model.wan):
        return 0.0
    return float(texts * model.text_tokens * model.wan.text_dim * model.compute)
