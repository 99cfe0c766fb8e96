"""Rollouts and evaluation each take their own number of steps."""

import pytest

from flash_grpo.policies.wan import WanPolicy
from flash_grpo.records.files import read_records


def test_rollouts_and_evaluation_take_as_many_steps_as_each_is_told(train, monkeypatch):
    """Seen at the policy: a rollout's grid of 6 and an evaluation's of 3 have no timestep in common but the first two."""
    velocity, asked = WanPolicy.velocity, []

    def noting(self, x, timestep_B, condition):
        asked.append((len(x), int(timestep_B[0])))
        return velocity(self, x, timestep_B, condition)

    monkeypatch.setattr(WanPolicy, "velocity", noting)
    path = train(
        "schedule.num_steps=6",
        "method.plan.last_step=3",
        "evaluation.sampler.schedule.num_steps=3",
        "budget.iterations=1",
    )
    iteration = next(record for record in read_records(path) if record["kind"] == "iteration")
    assert iteration["cost"]["forward_evaluations"] == 8 * 6 + 8
    evaluated = [timestep for videos, timestep in asked if videos > 8]
    rolled_out = [timestep for videos, timestep in asked if videos == 8]
    assert len(set(evaluated)) >= 3 and sorted(set(rolled_out[:6]), reverse=True) == rolled_out[:6]
    assert len(rolled_out) == 6 + 1


@pytest.mark.parametrize("rollout_steps", ["4", "11"])
def test_evaluation_does_not_follow_the_rollouts_steps(train, rollout_steps):
    def first(path):
        return next(record["prompt_rewards"] for record in read_records(path) if record["kind"] == "evaluation")

    other = train(
        f"schedule.num_steps={rollout_steps}", "method.plan.last_step=3", "budget.iterations=1", "run_name=other"
    )
    assert first(other) == first(train("schedule.num_steps=7", "method.plan.last_step=3", "budget.iterations=1"))
