"""The held-out reward: asked by evaluation alone, recorded, and refused where it is trained on."""

import json

import pytest
import torch
from untimed import untimed

from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.algorithm.types import Scores
from flash_grpo.records.checked import from_json
from flash_grpo.records.files import read_records
from flash_grpo.records.schema import EvalRecord
from flash_grpo.run import checkpoint, loop, manifest
from flash_grpo.run.rehearsal import rehearse
from flash_grpo.run.settings import ConfigError

FIDELITY = "reward@evaluation.held_out=fidelity"
REMOTE = ("reward=remote", "reward@evaluation.held_out=remote")
HELD_OUT = ("held_out", "held_out_sem", "held_out_parts", "held_out_prompts")


def test_a_held_out_reward_is_recorded_and_changes_no_number_of_the_training(train):
    without, directory = train("run_name=without"), train("run_name=with", FIDELITY)
    plain, judged = ([untimed(record) for record in read_records(path)] for path in (without, directory))
    evaluations = [record for record in judged if record["kind"] == "evaluation"]
    assert len(evaluations) == 2
    for record in evaluations:
        by_prompt = record["held_out_prompts"]
        assert list(by_prompt) == list(record["prompt_rewards"])
        assert record["held_out"] == pytest.approx(sum(by_prompt.values()) / 32, abs=1e-6)
        assert record["held_out_parts"] == {"fidelity": record["held_out"]}
        assert 0 < record["held_out_sem"] < 0.1 < record["held_out"] < 1
    apart = [{key: value for key, value in record.items() if key not in HELD_OUT} for record in judged]
    assert apart == [{key: value for key, value in record.items() if key not in HELD_OUT} for record in plain]
    first, second = (checkpoint.newest(path)["parameters"] for path in (without, directory))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((directory / "run.json").read_text())["config"]["evaluation"]["held_out"]


def test_records_of_before_there_was_a_held_out_reward_are_read(train):
    *_, last = read_records(train())
    older = {key: value for key, value in last.items() if key not in HELD_OUT}
    record = from_json(EvalRecord, older)
    assert [getattr(record, name) for name in HELD_OUT] == [None, None, {}, {}]


def test_the_reward_and_the_held_out_one_must_each_stay_of_one_kind(train, config, monkeypatch):
    directory = train(FIDELITY)
    state = checkpoint.newest(directory)
    assert (state["scores"]["parts"], state["held_out"]["parts"]) == (("colour", "motion", "smoothness"), ("fidelity",))
    monkeypatch.setattr(
        "flash_grpo.tiny_world.fidelity.PictureFidelity.__call__",
        lambda self, video, text: Scores(total_B=torch.ones(len(text)), parts={"other": torch.ones(len(text))}),
    )
    with pytest.raises(RewardError, match="PictureFidelity: parts other, where the first scores had fidelity"):
        train(FIDELITY, "budget.iterations=3")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("reward@evaluation.held_out=shapes",), "is trained on"),
        ((*REMOTE, "reward.batch=1"), "is trained on"),
        (
            (
                "reward=composite",
                "+reward@reward.rewards.fidelity=fidelity",
                "+reward.weights.fidelity=0.1",
                FIDELITY,
            ),
            "is trained on",
        ),
        ((FIDELITY, "+evaluation.held_out.other=1"), "takes no other"),
        (("reward@evaluation.held_out=own",), "must name what makes this part"),
        (("reward@evaluation.held_out=own", "evaluation.held_out._target_=no.where"), "there is no object"),
        (("evaluation.held_out={path: x}",), "must name what makes this part"),
        (("evaluation.held_out=fidelity",), "must be a section of keys"),
        (("reward=brightness", "reward@evaluation.held_out=shapes", "prompts=few"), "does not know them"),
    ],
)
def test_a_held_out_reward_that_holds_nothing_out_or_cannot_be_asked_is_refused_before_any_work(
    config, tmp_path, overrides, message
):
    if "prompts=few" in overrides:
        (tmp_path / "few.txt").write_text("a cat\na dog\n")
        files = [f"prompts.{part}={tmp_path / 'few.txt'}" for part in ("train", "test")]
        overrides = (*overrides[:-1], "prompts=file", *files)
    cfg = config(f"runs_root={tmp_path / 'runs'}", *overrides)
    for attempt in (lambda: loop.load(cfg, loop.claim(cfg, "refused")), lambda: rehearse(cfg, 1)):
        with pytest.raises(ConfigError, match=message) as refusal:
            attempt()
        assert "evaluation.held_out" in str(refusal.value) or "prompts: the reward" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_value_out_of_range_is_named_by_its_key_before_the_model_is_loaded(config, tmp_path):
    cfg = config(f"runs_root={tmp_path}", FIDELITY, "+evaluation.held_out.threshold=0", "model.path=/nowhere")
    with pytest.raises(ConfigError, match=r"^evaluation\.held_out\.threshold=0: must be a positive number$"):
        loop.load(cfg, loop.claim(cfg, "refused"))


def test_another_server_is_another_reward(config, tmp_path):
    cfg = config(f"runs_root={tmp_path}", *REMOTE, "evaluation.held_out.urls=[http://node7:8700]")
    assert loop.claim(cfg, "two")


def test_a_held_out_reward_that_gives_the_trained_scores_ends_the_run(train):
    with pytest.raises(RewardError, match="ShapesReward gave every video the score of the trained reward"):
        train("reward@evaluation.held_out=shapes", "+evaluation.held_out.full_way=6.0")


def test_a_run_of_before_the_setting_existed_goes_on_and_one_with_another_is_refused(config, tmp_path):
    from omegaconf import OmegaConf

    now, other = (OmegaConf.to_container(config(*chosen), resolve=True) for chosen in ((), (FIDELITY,)))
    before = {**now, "evaluation": {key: value for key, value in now["evaluation"].items() if key != "held_out"}}
    manifest.refuse_another_config(tmp_path, before, now)
    with pytest.raises(ValueError, match=r"evaluation\.held_out\._target_: \(absent\) there"):
        manifest.refuse_another_config(tmp_path, before, other)
