"""The guards, judged on made-up records."""

import pytest

from flash_grpo.records import guards
from flash_grpo.records.schema import Cost, EvalRecord

OFF = dict.fromkeys(guards.USUAL)
TEXTS = [f"prompt {number}" for number in range(8)]
SPREAD = [0.1 * number for number in range(8)]


def record(iteration: int, held_out=None, diversity=0.1, base_distance=0.0, reward=1.0, noise=0.0) -> EvalRecord:
    """An evaluation; the held-out reward of each prompt is its own plus `held_out`, and `noise` up or down by turns."""
    by_prompt = {}
    if held_out is not None:
        by_prompt = {
            text: own + held_out + noise * (-1) ** n for n, (text, own) in enumerate(zip(TEXTS, SPREAD, strict=True))
        }
    return EvalRecord(
        iteration=iteration,
        optimizer_steps=iteration,
        cost=Cost(),
        evaluation_seconds=0.0,
        reward_mean=reward,
        reward_sem=None,
        reward_parts={},
        prompt_rewards={},
        n=8,
        diversity=diversity,
        base_distance=base_distance,
        held_out=held_out,
        held_out_prompts=by_prompt,
    )


def run_of(*held_out: float, noise: float = 0.0) -> list[EvalRecord]:
    return [record(10 * place, value, noise=noise if place else 0.0) for place, value in enumerate(held_out)]


@pytest.mark.parametrize(
    ("held_out", "noise", "holds"),
    [
        ((0.5, 0.4, 0.3, 0.2), 0.0, True),
        ((0.5, 0.4, 0.3), 0.0, False),  # twice
        ((0.5, 0.7, 0.4, 0.3, 0.2), 0.0, True),
        ((0.5, 0.4, 0.3, 0.2, 0.6), 0.0, False),  # it has recovered
        ((0.5, 0.9, 0.8, 0.7, 0.6), 0.0, False),  # it falls from a peak, and lies above the base
        ((0.5, 0.4, 0.4, 0.4), 0.0, True),  # it fell at once, and stays there
        ((0.5, 0.45, 0.45, 0.45), 0.1, False),  # the prompts do not agree
        ((0.5, 0.4, 0.4, 0.4), 0.1, False),  # 2.6 standard errors, as honest training falls
        ((0.5, 0.35, 0.35, 0.35), 0.1, True),
        ((0.5,), 0.0, False),
    ],
)
def test_held_out_falls_if_three_evaluations_in_a_row_are_surely_below_the_base(held_out, noise, holds):
    evaluations = run_of(*held_out, noise=noise)
    assert guards.flags(evaluations, OFF) == ["held_out_falls"] * holds
    reason = guards.stop_reason(evaluations, {**OFF, "held_out_falls": 3})
    assert reason.startswith(f"stopped by stop_when.held_out_falls at iteration {10 * (len(held_out) - 1)}: ") == holds
    assert bool(reason) == holds and guards.stop_reason(evaluations, OFF) == ""


def test_a_threshold_of_stop_when_is_that_of_the_flag():
    evaluations = run_of(0.5, 0.4)
    assert guards.flags(evaluations, {**OFF, "held_out_falls": 1}) == ["held_out_falls"]
    assert guards.flags([record(0), record(1, diversity=0.06)], {**OFF, "diversity_below": 0.7}) == ["diversity_below"]


@pytest.mark.parametrize(("now", "holds"), [(0.049, True), (0.051, False), (None, False)])
def test_diversity_is_compared_with_half_of_the_base_s(now, holds):
    evaluations = [record(0, diversity=0.1), record(5, diversity=now)]
    assert guards.flags(evaluations, OFF) == ["diversity_below"] * holds
    reason = guards.stop_reason(evaluations, {**OFF, "diversity_below": 0.5})
    assert (
        reason
        == "stopped by stop_when.diversity_below at iteration 5: diversity 0.049 is below 0.5 of the base's 0.1" * holds
    )


def test_the_distance_from_the_base_has_no_usual_threshold():
    evaluations = [record(0), record(5, base_distance=9.0)]
    assert guards.flags(evaluations, OFF) == []
    assert guards.flags(evaluations, {**OFF, "base_distance_above": 9.0}) == []
    assert guards.flags(evaluations, {**OFF, "base_distance_above": 8.9}) == ["base_distance_above"]


def test_nothing_is_judged_without_an_evaluation_of_the_base_or_with_values_that_are_missing():
    assert guards.flags(run_of(0.5, 0.4, 0.3, 0.2)[1:], OFF) == []
    assert guards.flags([record(number) for number in range(4)], OFF) == []
    assert guards.flags([], OFF) == []
    holes = run_of(0.5, 0.4, 0.3, 0.2)
    for one in holes[1:]:
        one.held_out_prompts.update(dict.fromkeys(TEXTS[1:]))
    assert guards.flags(holes, OFF) == [], "a single prompt has no standard error"


def test_noise_alone_makes_a_guard_hold_in_few_runs_of_five_evaluations():
    import random

    draw, runs, flagged = random.Random(0), 400, 0
    for _ in range(runs):
        evaluations = run_of(*[0.5] * 6)
        for one in evaluations:
            one.held_out_prompts.update(
                {text: value + draw.gauss(0, 0.1) for text, value in one.held_out_prompts.items()}
            )
        flagged += any(guards.flags(evaluations[:end], OFF) for end in range(1, 7))
    assert flagged / runs < 0.02


def test_the_best_evaluation_is_the_first_of_the_largest_value_that_is_known():
    evaluations = [record(0, 0.1), record(1, 0.3, reward=0.0), record(2, 0.3), record(3, reward=2.0)]
    assert guards.best(evaluations, "held_out").iteration == 1
    assert guards.best(evaluations, "reward").iteration == 3
    assert guards.best(evaluations[3:], "held_out") is None
