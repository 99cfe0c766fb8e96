"""Test `python -m flash_grpo.diagnose`: text, JSON, and what it refuses."""

import json
import logging
import sys

import pytest

from flash_grpo import diagnose

QUICK = (
    "ablations=short_branches",
    "rollout.layout.num_prompts=4",
    "rollout.layout.group_size=4",
    "diagnose.iterations=2",
    "diagnose.repeats=2",
    "device=cpu",
)


@pytest.fixture
def called(monkeypatch, capsys, tmp_path):
    """`called("seed=1")`: standard output and standard error of the command, in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["diagnose", *arguments])
        diagnose.main()
        captured = capsys.readouterr()
        return captured.out, captured.err

    yield run
    assert not list(tmp_path.iterdir()), "a diagnosis writes nothing"
    root.handlers[:], root.level = handlers, level


def test_the_text_has_numbers_a_verdict_and_what_to_try(called):
    out, err = called(*QUICK)
    assert "it computes" in err and "forwards" in err
    for words in ("base reward", "siblings", "variance from", "gradient", "before an update", "verdict: "):
        assert words in out
    assert "nan" not in out and "None" not in out


def test_the_json_is_one_object_with_all_numbers(called):
    out, _ = called(*QUICK, "diagnose.output=json", "schedule.noise=flow")
    read = json.loads(out)
    assert (read["kind"], read["method"], read["noise"]) == ("diagnosis", "short_branches", "flow")
    assert read["verdict"] and all(isinstance(sentence, str) for sentence in read["sentences"])
    gradient = read["gradient"]
    assert gradient["ratio_per_1000_forwards"] == pytest.approx(
        1000 * gradient["ratio"] / read["cost"]["iteration_forwards"]
    )
    assert set(read["shares"]) == {"step", "initial_noise", "sde_noise"}
    assert [size["group_size"] for size in read["sizes"]] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("rollout.layout.num_prompts=1", "rollout.layout.num_prompts=1: diagnose compares halves"),
        ("diagnose.iterations=1", "diagnose.iterations=1: must be"),
        ("diagnose.repeats=1", "diagnose.repeats=1: must be"),
        ("diagnose.gain=0", "diagnose.gain=0: must be"),
        ("diagnose.output=yaml", "diagnose.output=yaml: allowed are text, json"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_in_one_line(called, capsys, wrong, said):
    with pytest.raises(SystemExit, match="2"):
        called(*QUICK, wrong)
    err = capsys.readouterr().err.strip()
    assert said in err.splitlines()[-1]
