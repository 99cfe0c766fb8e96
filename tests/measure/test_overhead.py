"""An iteration is compared with what every implementation of it must compute, whatever the method's rollouts share."""

import pytest

from flash_grpo.algorithm.cost import counted
from flash_grpo.measure import overhead
from flash_grpo.run.build import prepare_trainer
from flash_grpo.training.ranks import Ranks

CHOICES = {
    "full": ("method=full",),
    "flash": (),
    "shared_noise": ("ablations=shared_noise",),
    "a tree": ("ablations=branchgrpo", "method.tree.steps=[0,3]"),
    "a path": ("ablations=shared_noise", "rollout.path={lead:2,follow:1}"),
    "no SDE": ("ablations=awm",),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_unavoidable_forwards_are_those_of_an_iteration(config, monkeypatch, name):
    small = prepare_trainer(config(*CHOICES[name]), Ranks("cpu"))
    parts, asked = overhead._unavoidable_parts(small), []
    velocity = small.policy.velocity
    monkeypatch.setattr(small.policy, "velocity", lambda x, *more: asked.append(len(x)) or velocity(x, *more))
    counts = counted(small.method, small.layout, len(small.schedule), 0, 1, 64, path=small.rollouts.path)
    parts["forwards"]()
    assert sum(asked) == counts.rollout_velocities
    asked.clear()
    parts["update"]()
    assert sum(asked) == counts.trained_states


def test_every_part_takes_time_and_the_overhead_is_a_ratio_of_two_times(config, monkeypatch):
    monkeypatch.setattr(overhead, "REPEATS", 2)
    measured = overhead.measure(config())
    assert list(measured["seconds"]) == ["iteration", "forwards", "update", "decode", "reward"]
    assert min(measured["seconds"].values()) > 0
    assert 0.5 < measured["overhead"] < 5
