"""What `preflight=true` says on this machine of runs that would work, and of runs that would not; Slurm has its own test."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
import wan_pipeline

from flash_grpo import bench, cli
from flash_grpo.algorithm.types import Scores
from flash_grpo.policies.wan import WanPolicy
from flash_grpo.preflight import ask, servers
from flash_grpo.run import checkpoint

AWAY = "http://127.0.0.1:9"  # the port that discards: nothing listens there


@pytest.fixture
def asked(monkeypatch, capsys, tmp_path, small):
    """`asked("seed=1")`: exit code, output, error and the JSON of a preflight of a small run, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str, program=cli) -> tuple[int, str, str, dict]:
        monkeypatch.setattr(sys, "argv", ["train.py", "preflight=true", *small, *arguments])
        code = 0
        try:
            program.main()
        except SystemExit as end:
            code = end.code
        said, written = capsys.readouterr(), list(tmp_path.rglob("preflight.json"))
        return code, said.out, said.err, json.loads(written[0].read_text()) if written else {}

    return called


def _only_reason(answer) -> str:
    """The reason of a no-go that has a single one, after checking that it is also printed."""
    code, out, _, written = answer
    assert (code, written["verdict"]) == (1, "no-go"), out
    (reason,) = written["reasons"]
    assert f"no-go, for 1 reason(s):\n- {reason}" in out
    return reason


@pytest.fixture
def wan_pipeline_run(wan_folder, tmp_path):
    """A run of the release's recipe on a small pipeline of Wan's own classes, whose text encoder is asked too."""
    return wan_pipeline.overrides(wan_folder, tmp_path)


class Drifting(WanPolicy):
    """The tiny model, with other velocities where they are trained."""

    def velocity(self, *inputs):
        return super().velocity(*inputs) + (0.3 if torch.is_grad_enabled() else 0)


def brightness(video_BFHWC, text) -> Scores:
    total_B = video_BFHWC.float().flatten(1).mean(1)
    return Scores(total_B=total_B, parts={"brightness": total_B})


def moody(video_BFHWC, text) -> Scores:
    total_B = torch.rand(len(text))
    return Scores(total_B=total_B, parts={"mood": total_B})


def lazy(video_BFHWC, text) -> Scores:
    time.sleep(1.5)
    return brightness(video_BFHWC, text)


def hungry(video_BFHWC, text) -> Scores:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_run_that_would_work_is_a_go_and_leaves_no_run(asked, tmp_path):
    code, out, _, written = asked()
    assert (code, written["verdict"], written["reasons"]) == (0, "go", [])
    assert "go: nothing stands in the way" in out and "seconds are measured" in out
    assert set(written["stages"]) >= {"loading", "rollout", "decode", "reward", "update", "checkpoint"}
    assert all(stage["seconds"] > 0 and stage["peak_gigabytes"] > 0.1 for stage in written["stages"].values())
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "runs/default/.preflight/small/preflight.json"
    ]


def test_the_plan_s_measured_prices_give_the_measured_seconds_again(asked):
    written = asked("method=full")[3]
    prices = {name: price["seconds"] for name, price in written["plan"]["arms"][0]["unit_prices"].items()}
    stages = written["stages"]
    assert written["rollout_forwards"] == 11 * written["videos"] == 88
    assert prices["forward"] * written["rollout_forwards"] == pytest.approx(stages["rollout"]["seconds"])
    assert prices["decode"] * written["videos"] == pytest.approx(stages["decode"]["seconds"])
    assert written["update_backward_evaluations"] == 64  # a micro-batch of the 80 transitions
    update = 64 * (prices["forward"] + prices["backward"])
    assert update == pytest.approx(stages["update"]["seconds"]) or prices["backward"] == 0


def test_drift_above_the_clip_is_a_no_go(asked):
    """Of a policy whose replay computes otherwise than its rollouts."""
    drifting = f"model._target_={__name__}.Drifting"
    reason = _only_reason(asked(drifting))
    assert reason.startswith("drift: before any update, ratios differ from 1 by ")
    assert "method.ratio_clip=0.001" in reason and "rollout.batch equal to training.batch" in reason
    assert asked(drifting, "method.ratio_clip=1e3")[3]["verdict"] == "go"


def test_the_release_s_recipe_has_its_text_encoder_tried_too(asked, wan_pipeline_run):
    code, out, _, written = asked(*wan_pipeline_run)
    assert code == 0, out
    assert (written["dtype"], written["rollout_forwards"], written["videos"]) == ("bfloat16", 22, 1)
    prices = written["plan"]["arms"][0]["unit_prices"]
    assert prices["recompute"] == prices["forward"] and prices["forward"]["source"] == "measured by preflight on cpu"


def test_a_server_that_is_there_is_a_go(asked, serving):
    code, out, _, written = asked("reward=remote", f"reward.urls=[{serving(brightness).url}]")
    assert code == 0, out
    (server,) = written["servers"]
    assert (server["failure"], server["difference"]) == ("", 0.0) and 0 < server["seconds"] < 1


def test_an_absent_server_is_a_no_go(asked, serving, monkeypatch):
    monkeypatch.setattr(servers, "PATIENCE_S", 0.1)
    there = serving(brightness).url
    reason = _only_reason(asked("reward=remote", f"reward.urls=[{there},{AWAY}]"))
    assert reason.startswith(f"reward.urls: {AWAY} does not score") and "leave it out of reward.urls" in reason


def test_a_server_that_says_something_else_each_time_is_a_no_go(asked, serving):
    url = serving(moody).url
    reason = _only_reason(asked("reward=remote", f"reward.urls=[{url}]"))
    assert reason.startswith(f"reward.urls: {url} scores one video differently by 0.") and "deterministic" in reason


def test_a_server_for_which_ranks_would_mostly_wait_is_a_no_go(asked, serving):
    reason = _only_reason(asked("reward=remote", f"reward.urls=[{serving(lazy).url}]", "reward.batch=1"))
    assert "reward.urls: scoring takes" in reason and reason.endswith("servers in reward.urls would keep up")
    assert int(reason.split(": ")[-1].split()[0]) > 2


def test_a_checkpoint_that_takes_longer_than_the_grace_time_is_a_no_go(asked, monkeypatch):
    """On a disk that takes two seconds for each file, with the shape of a cluster that is not there."""

    class Here:
        def __init__(self, _, minutes, folder, function, *arguments):
            self.job = type("Job", (), {"job_id": "1"})
            self.log_file, self.results = folder, lambda: [function(*arguments)]

    monkeypatch.setattr(ask, "submitted", Here)
    monkeypatch.setattr(checkpoint.os, "fsync", lambda _: time.sleep(2))
    shape = ("slurm=cpu", "hydra.launcher.signal_delay_s=1")
    reason = _only_reason(asked(*shape))
    assert reason.startswith("too slow to save: ") and "hydra.launcher.signal_delay_s=1 s" in reason


def test_a_stage_without_memory_is_a_no_go_with_the_settings_that_need_less(asked):
    reason = _only_reason(asked("reward=own", f"reward._target_={__name__}.hungry"))
    assert reason.startswith("reward: OutOfMemoryError: CUDA out of memory")
    assert "model.gradient_checkpointing=true" in reason


def test_the_held_out_reward_s_servers_are_asked_too(asked, monkeypatch):
    monkeypatch.setattr(servers, "PATIENCE_S", 0.1)
    reason = _only_reason(asked("reward@evaluation.held_out=remote", f"evaluation.held_out.urls=[{AWAY}]"))
    assert reason.startswith(f"evaluation.held_out.urls: {AWAY} does not score")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preflight=yes"], "preflight"),
        (["-m", "preflight=true,false"], "preflight cannot be swept over"),
        (["plan=true"], "plan, preflight: ask for one of them"),
        (["rollout.layout.num_prompts=0"], "rollout.layout.num_prompts=0: must be"),
        (["--config-dir", "/tmp"], "preflight=true goes with -m alone"),
        (["prompts=file", "prompts.train=no.txt", "prompts.test=no.txt"], "no.txt"),
        (["model=own", "model._target_=no.such.model"], "no.such"),
    ],
)
def test_bad_input_is_refused_in_one_line_with_exit_code_2(asked, arguments, message, tmp_path):
    code, out, err, _ = asked(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.rglob("*.json"))


def test_other_commands_do_not_answer_it(asked):
    code, _, err, _ = asked(program=bench)
    assert code == 2 and "preflight: is answered by train.py alone" in err


def test_a_shape_of_a_cluster_where_there_is_none_is_refused(asked, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    code, _, err, _ = asked("slurm=cpu")
    assert code == 2 and "slurm=local needs none" in err
