"""Judge a run by its evaluation records: which guards hold, which one ends the run, which evaluation is the best.

A guard holds after an evaluation or does not, by the records up to then and nothing else. So a run that is continued decides
as one that was never stopped, and the analysis can judge a run that is over. Standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from flash_grpo.records.schema import EvalRecord

SURE = 3.0  # standard errors within which a fall of the held-out reward is no alarm (ours)
USUAL: dict[str, float | None] = {"held_out_falls": 3, "diversity_below": 0.5, "base_distance_above": None}
"""The guards, with the thresholds (ours) by which records name them where `stop_when` has null; None never holds."""

Evaluations = Sequence[EvalRecord]
Thresholds = Mapping[str, float | None]


def flags(evaluations: Evaluations, stop_when: Thresholds) -> list[str]:
    """Return the names of the guards that hold after the last of a run's evaluations, oldest first."""
    return [name for name, threshold in thresholds(stop_when).items() if why(name, threshold, evaluations)]


def thresholds(stop_when: Thresholds) -> dict[str, float | None]:
    """Return the thresholds by which guards are judged: those of `stop_when`, USUAL's where it has None."""
    return {name: usual if stop_when.get(name) is None else stop_when[name] for name, usual in USUAL.items()}


def stop_reason(evaluations: Evaluations, stop_when: Thresholds) -> str:
    """Say which guard ends the run after the last of its evaluations, and why; '' if none does."""
    for name, threshold in stop_when.items():
        if because := why(name, threshold, evaluations):
            return f"stopped by stop_when.{name} at iteration {evaluations[-1].iteration}: {because}"
    return ""


def why(name: str, threshold: float | None, evaluations: Evaluations) -> str:
    """Say why a guard holds after the last evaluation; '' if it does not, is off, or the base was not evaluated."""
    if threshold is None or not evaluations or evaluations[0].iteration > 0:
        return ""
    return GUARDS[name](evaluations, threshold)


def held_out_falls(evaluations: Evaluations, times: float) -> str:
    """Guard against a policy that the held-out reward finds worse than the base.

    It holds if each of the last `times` evaluations lies below the first one by more than SURE standard errors of the
    difference, paired over prompts; never with fewer than two prompts. A fall from a peak above the base does not count, and
    two standard errors are too few: honest training, too, costs some of what it is not paid for (see analysis/LOG.md).
    """
    base, *later = evaluations
    last = [_changes(base, record) for record in later[-int(times) :]]
    if len(last) < times or min(map(len, last)) < 2:
        return ""
    if any(mean(some) >= -SURE * _standard_error(some) for some in last):
        return ""
    return f"the held-out reward is {-mean(last[-1]):.3g} below the base's (standard error {_standard_error(last[-1]):.2g})"


def _changes(base: EvalRecord, record: EvalRecord) -> list[float]:
    """Return the change of each prompt's held-out reward; a value that is not finite stands as None in a record."""
    now, before = record.held_out_prompts, base.held_out_prompts
    return [now[text] - before[text] for text in before if None not in (now.get(text), before[text])]


def _standard_error(changes: list[float]) -> float:
    return stdev(changes) / len(changes) ** 0.5


def diversity_below(evaluations: Evaluations, share: float) -> str:
    """Guard against a policy whose videos of one prompt look alike: less than this share of the base's diversity."""
    now, base = evaluations[-1].diversity, evaluations[0].diversity
    if now is None or base is None or now >= share * base:
        return ""
    return f"diversity {now:.3g} is below {share:g} of the base's {base:.3g}"


def base_distance_above(evaluations: Evaluations, distance: float) -> str:
    """Guard against a policy that has gone further from the base than `distance`, see `EvalRecord.base_distance`."""
    now = evaluations[-1].base_distance
    return f"the distance from the base {now:.3g} is above {distance:g}" if now is not None and now > distance else ""


GUARDS: dict[str, Callable[[Evaluations, float], str]] = {
    "held_out_falls": held_out_falls,
    "diversity_below": diversity_below,
    "base_distance_above": base_distance_above,
}


def best(evaluations: Evaluations, by: str) -> EvalRecord | None:
    """Return the evaluation with the largest value, the first of equal ones; None if none has one. by: as in `value`."""
    valued = [record for record in evaluations if value(record, by) is not None]
    return max(valued, key=lambda record: value(record, by) or 0.0, default=None)


def value(record: EvalRecord, by: str) -> float | None:
    """Return what an evaluation is worth. by: "reward" or "held_out", as `checkpoint.best_by`."""
    return record.reward_mean if by == "reward" else record.held_out
