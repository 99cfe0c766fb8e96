"""That the shipped base draws well enough to be trained, and leaves room."""

import json
import time

import pytest
import torch
from diffusers import WanTransformer3DModel

from flash_grpo.scenes_world import gates
from flash_grpo.scenes_world.clips import asked, captions, render
from flash_grpo.scenes_world.gates import CHECKPOINT, GATES, failed, measure, shown


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    return measure(CHECKPOINT)


def test_the_shipped_base_passes_the_gates_and_leaves_room(measured):
    assert GATES == {"direction_right": 0.55, "fidelity": 0.85}
    assert failed(measured) == []
    assert measured["ceiling"]["total"] > 2.8
    assert measured["headroom"]["total"] > 0.8
    assert measured["ceiling"]["total"] - measured["base"]["total"] == pytest.approx(
        measured["headroom"]["total"], abs=2e-3
    )


def test_what_the_command_noted_of_the_base_is_what_is_measured_again(measured):
    noted = json.loads((CHECKPOINT / "pretraining.json").read_text())
    assert noted["failed"] == []
    for name in ("base", "ceiling"):
        assert noted[name] == pytest.approx(measured[name], abs=0.02)


def test_a_base_that_draws_badly_fails_each_gate_in_a_line():
    lines = failed({"base": {"direction_right": 0.26, "fidelity": 0.86}})
    assert lines == ["direction_right: 0.26, must be at least 0.55"]


def test_clean_clips_show_every_word_that_they_were_rendered_from():
    index_BA = asked(captions(held_out=True))
    assert (shown(render(index_BA, torch.Generator().manual_seed(0))) == index_BA).float().mean() > 0.99


def test_the_command_prints_ceiling_base_and_headroom(measured, monkeypatch, capsys):
    monkeypatch.setattr(gates, "measure", lambda _: measured)
    assert gates.main([]) == 0
    assert json.loads(capsys.readouterr().out) == measured


@torch.no_grad()
def test_a_forward_takes_at_most_two_milliseconds_of_cpu_time_a_video():
    transformer = WanTransformer3DModel.from_pretrained(CHECKPOINT, subfolder="transformer")
    x_BCFHW, condition_BMD = torch.zeros(64, 16, 3, 4, 4), torch.zeros(64, 10, 32)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        transformer(x_BCFHW, torch.full((64,), 500), condition_BMD, return_dict=False)
        seconds.append(time.process_time() - start)
    assert min(seconds) / 64 <= 2e-3
