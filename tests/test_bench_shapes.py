"""The benchmark at real shapes, with the shapes made small."""

import json

import pytest

from flash_grpo import bench_shapes


def test_every_phase_is_measured_with_random_weights(config):
    cfg = config(
        "model=wan21_1p3b",
        "optim=lora",
        "model.architecture={num_attention_heads: 2, attention_head_dim: 24, ffn_dim: 32, num_layers: 1}",
        "model.frames=1",
        "model.height=16",
        "model.width=16",
        "model.max_text_tokens=4",
        "bench.repeats=1",
    )
    measured = json.loads(json.dumps(bench_shapes.measure(cfg)))
    assert list(measured["phases"]) == ["denoising_step", "decode", "reward", "update"]
    assert all(phase["seconds"] > 0 for phase in measured["phases"].values())
    assert measured["phases"]["denoising_step"]["tflop_per_second"] > 0
    assert measured["phases"]["decode"]["tflop_per_second"] is None
    assert measured["rollout_seconds"] == pytest.approx(
        measured["rollout_steps"] * measured["phases"]["denoising_step"]["seconds"]
        + measured["phases"]["decode"]["seconds"],
        abs=1e-3,
    )
    assert measured["weights"] == "random" and measured["dtype"] == "bfloat16"
