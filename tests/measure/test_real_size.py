"""Test the benchmark of a real model, with its sizes made small."""

import json

import pytest
from hydra import initialize_config_dir

from flash_grpo.measure import real_size
from flash_grpo.run import compose


def test_every_phase_is_measured_with_random_weights(config):
    cfg = config(
        "model=wan21_1p3b",
        "model.architecture={num_attention_heads: 2, attention_head_dim: 24, ffn_dim: 32, num_layers: 1}",
        "model.frames=1",
        "model.height=64",
        "model.width=64",
        "model.max_text_tokens=4",
        "bench.repeats=1",
    )
    with initialize_config_dir(compose.CONF, version_base="1.3"):  # as inside the command
        measured = json.loads(json.dumps(real_size.measure(cfg)))
    phases = measured["phases"]
    assert list(phases) == ["rollout", "decode", "reward", "update"]
    assert all(phase["seconds"] > 0 and phase["peak_gigabytes"] > 0.1 for phase in phases.values())
    assert phases["decode"]["tflop_per_second"] > 0
    assert (measured["steps"], measured["transitions"], measured["method"]) == (11, 1, "flash")
    forward, backward = measured["tflop_per_forward"], measured["tflop_per_backward"]
    assert 0 < backward < 3 * forward  # LoRA: less than two forwards, and at most one that is computed again
    for name, expected in {"rollout": 2 * 11 * forward, "update": 2 * (forward + backward)}.items():  # 2: guidance
        tflop = phases[name]["seconds"] * phases[name]["tflop_per_second"]
        assert tflop == pytest.approx(expected, rel=0.1)
    assert measured["weights"] == "random" and measured["dtype"] == "bfloat16"
