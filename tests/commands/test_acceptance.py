"""The acceptance of a GPU, rehearsed on a CPU: every stage runs, and nothing is passed off as measured."""

import json

import pytest

from flash_grpo import acceptance
from flash_grpo.measure.acceptance import STAGES, not_accepted
from flash_grpo.planning.unit_prices import MEASURED


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """What a rehearsal of all stages writes."""
    file = tmp_path_factory.mktemp("acceptance") / "cpu.json"
    acceptance.main(["--device", "cpu", "--output", str(file)])
    return json.loads(file.read_text())


def test_every_stage_runs_and_says_that_it_is_a_rehearsal(rehearsed):
    assert list(rehearsed) == ["device", "torch", "rehearsal", *STAGES]
    assert (rehearsed["device"], rehearsed["rehearsal"]) == ("cpu", True)
    assert not [name for name in STAGES if "failed" in rehearsed[name]]


@pytest.mark.parametrize(("stage", "variant"), [("phases", "attention=native"), ("large", "14B")])
def test_phases_have_seconds_rates_memory_and_drift(rehearsed, stage, variant):
    found, rate = rehearsed[stage][variant], rehearsed["matmul"]["tflop_per_second"]
    assert (found["steps"], found["transitions"], found["dtype"]) == (2, 1, "bfloat16")
    for name in ("rollout", "decode", "update"):
        phase = found["phases"][name]
        assert phase["seconds"] > 0 and phase["predicted_gigabytes"] > 0
        assert phase["share_of_matmul"] == pytest.approx(phase["tflop_per_second"] / rate, rel=1e-3)
    assert found["drifts"] == (found["ratio_drift"] > found["ratio_clip"])


def test_a_killed_run_goes_on_bit_identically(rehearsed):
    assert rehearsed["resume"]["killed"] and 2 <= rehearsed["resume"]["after"] < 8
    assert rehearsed["resume"]["bit_identical"]


def test_a_sharded_base_and_a_loaded_export_compute_the_same(rehearsed):
    assert rehearsed["shard"] == {"backend": "gloo", "velocity_difference": 0.0, "gradient_difference": 0.0}
    assert rehearsed["export"]["difference"] < 1e-5 < 1e-3 < rehearsed["export"]["effect_of_the_adapters"]


def test_without_a_gpu_it_is_refused_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        acceptance.main([])
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1) and "--device cpu" in said.err


def test_a_rehearsal_is_not_kept_among_what_was_measured(capsys):
    with pytest.raises(SystemExit, match="2"):
        acceptance.main(["--device", "cpu", "--output", str(MEASURED / "acceptance_cpu.json")])
    assert "docs/measured" in capsys.readouterr().err
    assert not list(MEASURED.glob("acceptance_cpu*"))


def test_stages_that_were_measured_before_are_kept(tmp_path):
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps({"device": "cpu", "matmul": {"tflop_per_second": 1e9}, "export": {"difference": 0.0}}))
    acceptance.main(["--device", "cpu", "--stage", "matmul", "--output", str(file)])
    found = json.loads(file.read_text())
    assert found["export"] == {"difference": 0.0} and found["matmul"]["tflop_per_second"] < 1e9


def test_what_a_device_fails_in_is_named_and_what_it_lacks_is_not():
    good = {"matmul": {"tflop_per_second": 1.0}, "resume": {"bit_identical": True}}
    lacks = {"attention=native": {"drifts": False}, "attention=flash": {"failed": "ImportError"}}
    assert not_accepted(good | {"phases": lacks}) == []
    bad = {"phases": {"attention=native": {"drifts": True}}, "large": {"14B": {"failed": "OutOfMemoryError"}}}
    bad |= {"resume": {"bit_identical": False}, "shard": {"failed": "RuntimeError: no NCCL"}}
    lines = not_accepted(bad)
    assert [line.split(":")[0] for line in lines] == ["shard", "phases, attention=native", "large", "resume"]


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_file_that_cannot_be_written_again_is_refused_before_anything_is_measured(tmp_path, capsys, content):
    file = tmp_path / "nowhere" / "cpu.json" if content is None else tmp_path / "cpu.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        acceptance.main(["--device", "cpu", "--stage", "matmul", "--output", str(file)])
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1) and str(file) in said.err


def test_a_stage_that_fails_leaves_the_others_in_the_file_and_ends_with_1(tmp_path, monkeypatch, capsys):
    def fails(here, done):
        raise RuntimeError("no such thing here")

    monkeypatch.setitem(STAGES, "export", fails)
    file = tmp_path / "cpu.json"
    with pytest.raises(SystemExit, match="1"):
        acceptance.main(["--device", "cpu", "--stage", "matmul", "--stage", "export", "--output", str(file)])
    assert json.loads(file.read_text())["matmul"]["tflop_per_second"] > 0
    assert "- export: RuntimeError: no such thing here" in capsys.readouterr().out
