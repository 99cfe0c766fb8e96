"""Say what does not fit into a device's memory, and which setting would make it fit."""

from collections.abc import Callable
from dataclasses import replace

from flash_grpo.planning.memory import OUTSIDE, Load, peak, phases
from flash_grpo.planning.model import Model
from flash_grpo.planning.wan import Adapters

Loaded = tuple[Model, Load]
LORA = Adapters(rank=16, targets=("to_q", "to_k", "to_v", "to_out.0"))  # of optim=lora


def _lora(model: Model, load: Load) -> Loaded:
    if not model.wan or model.lora:
        return model, load
    return replace(model, lora=LORA, base_copied=False, trainable=model.wan.adapter_parameters(LORA)), load


CHANGES: tuple[tuple[str, Callable[[Model, Load], Loaded]], ...] = (
    ("model.gradient_checkpointing=true", lambda model, load: (replace(model, checkpointing=True), load)),
    ("training.batch=1", lambda model, load: (model, replace(load, training_batch=1))),
    ("rollout.batch=1", lambda model, load: (model, replace(load, rollout_batch=1))),
    ("evaluation.sampler.batch=1", lambda model, load: (model, replace(load, evaluation_batch=1))),
    ("model.slicing=true", lambda model, load: (replace(model, slicing=True), load)),
    ("reward=remote", lambda model, load: (model, replace(load, scoring_bytes=0.0))),
    ("model.tiling=true", lambda model, load: (replace(model, tiling=True), load)),
    ("optim=lora", _lora),
    ("model.shard=true", lambda model, load: (replace(model, sharded=bool(model.lora)), load)),
)
"""Settings that lower the peak, those that cost the least first."""


def needed(model: Model, load: Load) -> float:
    """Return the bytes of the largest phase, with what torch does not count."""
    return peak(phases(model, load))[1] + OUTSIDE


def way_out(model: Model, load: Load, room: float) -> str:
    """Say which settings make the run fit into so many bytes: one alone if one does, else the first few that do together.

    '' if it fits as it is.
    """
    if needed(model, load) <= room:
        return ""
    for words, change in CHANGES:
        if needed(*change(model, load)) <= room:
            return f"{words} would make it fit ({needed(*change(model, load)) / 1e9:.0f} GB)"
    taken, now = list[str](), (model, load)
    for words, change in CHANGES:
        changed = change(*now)
        if needed(*changed) < needed(*now):
            taken, now = [*taken, words], changed
        if needed(*now) <= room:
            return f"{' '.join(taken)} together would make it fit ({needed(*now) / 1e9:.0f} GB)"
    least = f"{needed(*now) / 1e9:.0f} GB with {' '.join(taken) or 'every setting as it is'}"
    return f"no setting makes it fit: {least}; choose a larger device, or fewer frames"
