"""Every configuration's plan is shown, or refused in one line, and leaves nothing on disk."""

from hypothesis import example, given
from test_configurations import assert_refused, fuzzed, outcome, overrides


@fuzzed
@given(overrides)
@example(["+evaluation.sampler.noises_per_prompt._target_=.."])
@example(["reward=remote", "reward.urls=true"])
@example(["model=wan22_5b", "model.revision=2.5"])
@example(["optim.lora=1"])
def test_a_plan_is_shown_and_leaves_nothing_or_is_refused_in_one_line(given_overrides):
    code, said, left = outcome([*given_overrides, "plan=json"])
    if code == 2:
        assert_refused(said, left)
    else:
        assert (code, said, left) == (0, [], [])
