"""`python -m flash_grpo.evaluate` on the tiny world: several rewards at once, one prompt, two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from reward_servers import Server

from flash_grpo.evaluate import main
from flash_grpo.rewards.brightness import brightness
from flash_grpo.run import loop

CAPTIONS = ("a red ball moving left", "a blue square moving up", "a green ball moving down")
REWARDS = ("--reward", "shapes", "--reward", "brightness")
TWO_NOISES = "evaluation.sampler.noises_per_prompt=2"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """`prompts(2)`: overrides for that many captions."""

    def first(count: int) -> tuple[str, ...]:
        file = tmp_path_factory.mktemp("prompts") / "captions.txt"
        file.write_text("\n".join(CAPTIONS[:count]))
        return ("prompts=file", f"prompts.train={file}", f"prompts.test={file}")

    return first


@pytest.fixture(scope="module")
def finished(config, prompts, tmp_path_factory) -> Path:
    cfg = config(*prompts(3), f"runs_root={tmp_path_factory.mktemp('runs')}", "optim.optimizer.lr=1e-2")
    return loop.run(cfg, cfg.run_name)


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory) -> Path:
    """Where one rank wrote its evaluation of the run by two rewards."""
    output = tmp_path_factory.mktemp("alone")
    main([str(finished), *REWARDS, TWO_NOISES, "--output", str(output)])
    return output


def _on_two_ranks(*args: str) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*launch, "-m", "flash_grpo.evaluate", *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done


def _evaluation(output: Path) -> dict:
    return json.loads((output / "evaluation.json").read_text())


def _manifest(output: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (output / name / "manifest.jsonl").read_text().splitlines()]


def test_several_rewards_at_once_are_paired_one_by_one(alone):
    result, lines = _evaluation(alone), {name: _manifest(alone, name) for name in ("base", "000002")}
    assert list(result["paired"]["000002"]["parts"]) == ["colour", "motion", "smoothness", "brightness", "shapes"]
    for part, gain in result["paired"]["000002"]["parts"].items():
        before, after = ([line["parts"][part] for line in lines[name]] for name in lines)
        gains = [
            (b - a + d - c) / 2 for a, c, b, d in zip(before[::2], before[1::2], after[::2], after[1::2], strict=True)
        ]
        mean = sum(gains) / 3
        sem = (sum((gain_of_prompt - mean) ** 2 for gain_of_prompt in gains) / 2 / 3) ** 0.5
        assert (gain["mean"], gain["sem"]) == (pytest.approx(mean, abs=1e-5), pytest.approx(sem, abs=1e-5))
    total = (
        result["paired"]["000002"]["parts"]["shapes"]["mean"]
        + result["paired"]["000002"]["parts"]["brightness"]["mean"]
    )
    assert (
        result["paired"]["000002"]["mean"] == pytest.approx(total, abs=1e-5) and result["paired"]["000002"]["mean"] != 0
    )


def test_the_printed_table_has_a_line_for_each_part(finished, tmp_path, capsys):
    main([str(finished), *REWARDS, "--output", str(tmp_path)])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["base", "000002", "gain"]
    assert [line.split()[0] for line in lines[:6]] == [
        "reward", "colour", "motion", "smoothness", "brightness", "shapes"
    ]  # fmt: skip
    assert all(" ± " in line for line in lines[:6])


@pytest.fixture(scope="module")
def server():
    """The address of a server of brightness."""
    server = Server(brightness, max_megabytes=4).start()
    yield server.url
    server.kill()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--reward", "remote", "reward.urls=[{url}]"], ["brightness"]),
        (["reward=remote", "reward.urls=[{url}]", "reward.batch=1"], ["brightness"]),
        (
            ["--reward", "remote", "--reward", "shapes", "reward.remote.urls=[{url}]"],
            ["brightness", "colour", "motion", "smoothness", "remote", "shapes"],
        ),
    ],
)
def test_a_named_reward_takes_its_overrides(finished, server, tmp_path, arguments, parts):
    main([str(finished), *(item.format(url=server) for item in arguments), "--output", str(tmp_path)])
    assert list(_evaluation(tmp_path)["paired"]["000002"]["parts"]) == parts


def test_a_named_reward_takes_its_overrides_for_a_model_without_a_run(server, prompts, tmp_path):
    arguments = ["--reward", "remote", f"reward.urls=[{server}]", "--output", str(tmp_path)]
    main(["BASE", *SMALL, *prompts(1), *arguments])
    assert list(_evaluation(tmp_path)["base"]["parts"]) == ["brightness"]


def test_other_prompts_and_another_evaluation_can_be_chosen_for_a_run(finished, prompts, tmp_path):
    main(
        [
            str(finished),
            *prompts(1),
            "evaluation=tiny",
            "evaluation.sampler.schedule.num_steps=2",
            "--output",
            str(tmp_path),
        ]
    )
    result = _evaluation(tmp_path)
    assert list(result["base"]["prompt_rewards"]) == list(CAPTIONS[:1])
    assert len(_manifest(tmp_path, "base")) == 4  # tiny: four noises


def test_the_manifest_holds_a_prompt_s_metadata(finished, tmp_path):
    metadata = {"dimension": ["object_class"], "auxiliary": {"object": "ball"}}
    file = tmp_path / "test.jsonl"
    file.write_text(
        "".join(json.dumps(line) + "\n" for line in ({"prompt": CAPTIONS[0], **metadata}, {"prompt": CAPTIONS[1]}))
    )
    main([str(finished), f"prompts.test={file}", "--output", str(tmp_path)])
    assert [line.get("metadata") for line in _manifest(tmp_path, "000002")] == [metadata, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "nowhere"], "reward=nowhere: there is no such option"),
        (["model=wan21_14b"], "model=wan21_14b: of a run only reward, prompts and evaluation can be chosen anew"),
        (["recipe=release"], "recipe=release: of a run only reward"),
        (["seed"], "seed: expected key=value"),
        (["devcie=cpu"], "devcie=cpu: Key 'devcie' is not in struct"),
        (["evaluation.smapler.batch=4"], "evaluation.smapler.batch=4: Key 'smapler' is not in struct"),
        (
            ["evaluation.sampler.noises_per_prompt=0"],
            "evaluation.sampler.noises_per_prompt=0: must be an integer, at least 1",
        ),
        (["--reward", "remote", "reward.url=x"], "reward has no key url; did you mean reward.urls?"),
        (
            [*REWARDS, "reward.urls=[x]"],
            "reward.urls=[x]: of which reward? reward.NAME.key=value, NAME one of shapes, brig",
        ),
    ],
)
def test_arguments_that_cannot_be_evaluated_are_refused_in_one_line(finished, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main([str(finished), *arguments, "--output", str(tmp_path)])
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_videos_of_other_prompts_need_a_directory_of_their_own(finished, prompts, tmp_path, capsys):
    main([str(finished), "--output", str(tmp_path)])
    videos = sorted((tmp_path / "base/videos").iterdir())
    with pytest.raises(SystemExit, match="2"):
        main([str(finished), *prompts(1), "--output", str(tmp_path)])
    assert "holds videos of other prompts: give --output" in capsys.readouterr().err
    assert sorted((tmp_path / "base/videos").iterdir()) == videos


def test_a_reward_that_cannot_be_had_is_one_line_and_exit_code_1(finished, tmp_path):
    arguments = ["--reward", "remote", "reward.urls=[http://127.0.0.1:9]", "reward.give_up_after=1"]
    with pytest.raises(SystemExit) as end:
        main([str(finished), *arguments, "--output", str(tmp_path)])
    assert (
        end.value.code.startswith("stopped: reward server http://127.0.0.1:9: no answer") and "\n" not in end.value.code
    )


def test_several_checkpoints_are_paired_with_the_base_each(finished, tmp_path, capsys):
    main([str(finished), "--iteration", "0", "--iteration", "2", "--output", str(tmp_path)])
    head, reward, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["base", "000000", "gain", "000002", "gain"]
    paired = _evaluation(tmp_path)["paired"]
    assert list(paired) == ["000000", "000002"]
    assert paired["000000"]["mean"] == 0 != paired["000002"]["mean"]
    assert f"{paired['000002']['mean']:+.3f}" in reward


def test_one_prompt_has_a_gain_and_no_standard_error(prompts, tmp_path, config, capsys):
    cfg = config(*prompts(1), f"runs_root={tmp_path}", "rollout.layout.num_prompts=1")
    main([str(loop.run(cfg, cfg.run_name)), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "evaluation.json").read_text()
    result = json.loads(text)
    assert "NaN" not in text and result["paired"]["000002"]["sem"] is None and result["paired"]["000002"]["n"] == 1
    assert result["base"]["reward_sem"] is None
    printed = capsys.readouterr().out
    assert "nan" not in printed and "± 0" not in printed


def test_two_ranks_evaluate_as_one_rank_does(finished, alone, tmp_path):
    done = _on_two_ranks(str(finished), *REWARDS, TWO_NOISES, "--output", str(tmp_path))
    assert done.stdout.count("gain: paired over 3 prompts") == 1
    ours, theirs = _evaluation(alone), _evaluation(tmp_path)
    for name in ("base", "000002"):
        assert theirs[name]["parts"] == pytest.approx(ours[name]["parts"], abs=3e-4)
        assert theirs[name]["prompt_rewards"] == pytest.approx(ours[name]["prompt_rewards"], abs=3e-4)
        files = {path.name for path in (tmp_path / name / "videos").iterdir()}
        assert files == {path.name for path in (alone / name / "videos").iterdir()} and len(files) == 6
        assert [path.name for path in (tmp_path / name).glob("*.jsonl")] == ["manifest.jsonl"]
        order = [[(line["prompt"], line["index"]) for line in _manifest(at, name)] for at in (alone, tmp_path)]
        assert order[0] == order[1] == [(text, index) for text in CAPTIONS for index in (0, 1)]
    assert theirs["paired"]["000002"]["mean"] == pytest.approx(ours["paired"]["000002"]["mean"], abs=3e-4)


def test_a_rank_without_videos_takes_part(prompts, tmp_path):
    _on_two_ranks("BASE", *SMALL, *prompts(1), "--output", str(tmp_path))
    assert list(_evaluation(tmp_path)["base"]["parts"]) == ["colour", "motion", "smoothness"]
    assert len(_manifest(tmp_path, "base")) == 1
