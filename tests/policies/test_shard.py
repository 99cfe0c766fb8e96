"""The 14B's recipe on a small pipeline: its base sharded over two ranks trains as it does whole on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wan_pipeline
from safetensors.torch import load_file
from shard_program import go_through

from flash_grpo.export import export
from flash_grpo.records.files import read_records
from flash_grpo.run import checkpoint
from flash_grpo.run.build import ConfigError, build

PROGRAM = Path(__file__).with_name("shard_program.py")


@pytest.fixture(scope="module")
def overrides(wan_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    (folder / "train.txt").write_text("\n".join(wan_pipeline.SENTENCES[:2]))
    (folder / "test.txt").write_text("\n".join(wan_pipeline.SENTENCES[1:]))  # three: one rank evaluates one video more
    return [
        "recipe=wan21_14b",
        f"model.path={wan_folder}",
        *wan_pipeline.SHAPE,
        f"model.embedding_cache={folder / 'text'}",
        "model.dtype=float32",
        "reward=brightness",
        f"prompts.train={folder / 'train.txt'}",
        f"prompts.test={folder / 'test.txt'}",
        "method.plan.last_step=4",
        "schedule.num_steps=5",
        "evaluation.sampler.schedule.num_steps=2",
        "optim.optimizer.lr=1e-2",
        "rollout.layout.num_prompts=2",
        "rollout.layout.group_size=4",
        "training.optimizer_steps=1",
        "training.batch=4",
        "method.kl_weight=0.01",
        "device=cpu",
        "threads=1",
    ]


def _on_two_ranks(output: Path, overrides: list[str]) -> dict:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    command = [*launch, str(PROGRAM), str(output), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(output)


@pytest.mark.slow
def test_two_sharded_ranks_train_as_one_whole_model(overrides, tmp_path):
    whole, sharded = (
        go_through(overrides),
        _on_two_ranks(
            tmp_path / "result.pt", [item for item in overrides if "training.batch" not in item] + ["training.batch=1"]
        ),
    )
    assert sharded["together"] and not whole["together"]
    assert sharded["held"] < 0.6 * whole["held"]
    assert sharded["whole"] == sharded["parameters"].keys()  # the adapters, and nothing that was gathered and forgotten
    assert sharded["transitions"] == whole["transitions"] == [5, 5]
    for name in ("loss", "reward_mean", "gradient_norm", "base_kl"):
        assert sharded[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-6)
    assert whole["base_kl"][1] > 0
    torch.testing.assert_close(sharded["evaluation"], whole["evaluation"], atol=1e-4, rtol=0)
    # Adam's step is lr (1e-2) whatever the gradient's size: rounding shows where a gradient is next to nothing
    torch.testing.assert_close(sharded["parameters"], whole["parameters"], atol=2e-3, rtol=0)
    assert max(sharded["drift"]) < 1e-4


@pytest.mark.slow
def test_sharded_in_bfloat16_a_run_saves_resumes_and_exports(overrides, tmp_path):
    chosen = ["model.dtype=bfloat16", "method.ratio_clip=0.1", "evaluation.every=1", f"runs_root={tmp_path}", "study=s"]
    _on_two_ranks(
        tmp_path / "result.pt", ["runs", *overrides, *chosen, "budget.device_hours=null", "optim.ema.every=1"]
    )
    whole, resumed = (checkpoint.newest(tmp_path / "s" / name) for name in ("whole", "resumed"))
    for part in ("parameters", "ema"):
        assert whole[part].keys() == resumed[part].keys() == {name for name in whole[part] if ".lora_" in name}
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
    records = [list(read_records(tmp_path / "s" / name)) for name in ("whole", "resumed")]
    losses = [[record["loss"] for record in run if record["kind"] == "iteration"] for run in records]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    exported = load_file(export(tmp_path / "s" / "resumed") / "pytorch_lora_weights.safetensors")
    assert sum(value.double().sum() for value in exported.values()) == pytest.approx(
        float(sum(value.double().sum() for value in resumed["ema"].values()))
    )
    assert len(exported) == len(resumed["ema"])


def test_sharding_needs_a_frozen_base(config, wan_folder):
    cfg = config("model=wan21_14b", f"model.path={wan_folder}", *wan_pipeline.SHAPE, "model.embedding_cache=null")
    with pytest.raises(ConfigError, match=r"model\.shard=true.*optim=lora"):
        build(cfg.model, "model", device=torch.device("cpu"), lora=None)
