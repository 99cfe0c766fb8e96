"""Groups without spread are reported once, and a reward that returns rubbish ends a run before anything is trained."""

import math
from types import SimpleNamespace

import pytest
import torch

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import Scores
from flash_grpo.records.files import read_manifest, read_records
from flash_grpo.tiny_world.reward import ShapesReward
from flash_grpo.training.score_checks import SpreadWatch


def _lines(*shares):
    watch = SpreadWatch()
    records = [SimpleNamespace(iteration=i + 1, groups_without_spread=s, reward_mean=0.5) for i, s in enumerate(shares)]
    return [watch.line(record) for record in records]


def test_groups_without_spread_are_reported_once_until_it_changes():
    lines = _lines(1, 1, 1, 1, 1, 0, 0, 0, 0, 0.25, 0.5, 0.25, 0.5)
    assert [index + 1 for index, line in enumerate(lines) if line] == [3, 8, 12]
    assert lines[2].startswith("iterations 1-3: all rollouts have the same reward (0.5 on average) in every group")
    assert lines[7] == "iterations 6-8: the rewards differ within every group again"
    assert "in some groups (25% of them)" in lines[11]


@pytest.mark.parametrize("shares", [(1, 1, 0, 1, 1, 0), (0,) * 9, (0.1, 0, 0.1, 0)])
def test_an_iteration_or_two_without_spread_are_not_worth_a_line(shares):
    assert not any(_lines(*shares))


def test_a_reward_that_never_varies_is_said_once_and_recorded(train, monkeypatch, caplog):
    monkeypatch.setattr(
        ShapesReward, "__call__", lambda self, video, text: Scores(total_B=torch.ones(len(text)), parts={})
    )
    directory = train("budget.iterations=5")
    said = [record.getMessage() for record in caplog.records if "same reward" in record.getMessage()]
    assert said == [
        "iterations 1-3: all rollouts have the same reward (1 on average) in every group; such groups train nothing "
        "(groups_without_spread in records.jsonl)"
    ]
    shares = [record["groups_without_spread"] for record in read_records(directory) if record["kind"] == "iteration"]
    assert shares == [1.0] * 5


RUBBISH = {
    "None": lambda text: None,
    "float32 list": lambda text: Scores(total_B=[1.0] * len(text), parts={}),
    "int64": lambda text: Scores(total_B=torch.ones(len(text), dtype=torch.int64), parts={}),
    "[B, 1]": lambda text: Scores(total_B=torch.ones(len(text), 1), parts={}),
    "[1]": lambda text: Scores(total_B=torch.ones(1), parts={}),
    "other parts": lambda text: Scores(total_B=torch.ones(len(text)), parts={"new": torch.ones(len(text))}),
    "negative cost": lambda text: Scores(total_B=torch.ones(len(text)), parts={}, device_seconds=-math.pi),
}


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("good_calls", [0, 1], ids=["in the evaluation", "in training"])
def test_rubbish_ends_the_run_in_one_line_before_anything_is_trained(train, monkeypatch, tmp_path, rubbish, good_calls):
    reward, calls = ShapesReward.__call__, []

    def spoilt(self, video, text):
        calls.append(text)
        return (
            reward(self, video, text) if len(calls) <= max(good_calls, rubbish == "other parts") else rubbish_of(text)
        )

    rubbish_of = RUBBISH[rubbish]
    monkeypatch.setattr(ShapesReward, "__call__", spoilt)
    with pytest.raises(RewardError, match=r"^reward ShapesReward: ") as refusal:
        train()
    assert "\n" not in str(refusal.value)
    directory = tmp_path / "default/small"
    assert read_manifest(directory).status == "failed"
    assert not [record for record in read_records(directory) if record["kind"] == "iteration"]


def test_a_run_goes_on_only_with_the_parts_that_it_began_with(train, monkeypatch, tmp_path):
    train("budget.iterations=1")
    monkeypatch.setattr(
        ShapesReward, "__call__", lambda self, video, text: Scores(total_B=torch.ones(len(text)), parts={})
    )
    with pytest.raises(RewardError, match="parts nothing, where the first scores had colour, motion, smoothness"):
        train("budget.iterations=2")
