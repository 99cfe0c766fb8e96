"""Runs that were given a share of the budget are compared at the others' budget, by the reward that they ended with."""

import numpy as np
import pytest
from test_study import write_study

from analysis import curves
from analysis.study import load_study

SHARE = {"budget": {"share": 0.1}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = write_study(tmp_path_factory.mktemp("short") / "study", ("flash", "full"), range(3))
    write_study(path, ("short_branches",), range(3), iterations=2, every=1, config=SHARE, gain=0.7)
    return load_study(path)


def test_a_short_run_does_not_lower_the_budget_of_the_comparison(study):
    assert curves.equal_budget(study) == pytest.approx(15.0)
    assert curves.equal_budget(study.only(["short_branches"])) == pytest.approx(1.5)


def test_a_short_run_keeps_its_last_reward_up_to_the_budget(study):
    summaries = curves.run_summaries(study)
    short = summaries[summaries["arm"] == "short_branches"]
    assert (short["at_budget"] == short["final"]).all()
    assert (short["spent"] == 1.5).all()
    rising = (1.5 + short["final"]) / 2
    np.testing.assert_allclose(short["area"], (1.5 * rising + 13.5 * short["final"]) / 15)
    rewards = curves.prompt_rewards_at(study, "short_branches", "device_seconds", 15.0)
    np.testing.assert_allclose(rewards.mean(axis=1), short["final"])


def test_a_run_that_ended_early_without_a_share_is_not_held(study):
    full = curves.run_summaries(study, budget=40.0)
    assert full.loc[full["arm"] == "full", "at_budget"].isna().all()
