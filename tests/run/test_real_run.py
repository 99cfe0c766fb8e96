"""The recipe of Wan2.1-1.3B, with only the sizes changed, on a small Wan pipeline: from rollout to export."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import wan_pipeline
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file

from flash_grpo.algorithm import keyed
from flash_grpo.evaluate import main as evaluate_main
from flash_grpo.export import export
from flash_grpo.export import main as export_main
from flash_grpo.measure.diagnosis import diagnosed
from flash_grpo.measure.spending import spending
from flash_grpo.records.files import read_manifest, read_records
from flash_grpo.run import build, checkpoint, loop, stop, stored
from flash_grpo.training.ema import EMA
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.update import DriftError


@pytest.fixture(scope="module")
def overrides(wan_folder, tmp_path_factory):
    """Overrides: recipe=wan21_1p3b on the small pipeline, two prompts to train on and two held out."""
    return (
        *wan_pipeline.overrides(wan_folder, tmp_path_factory.mktemp("real")),
        "optim.optimizer.lr=1e-2",
        "optim.ema.every=1",
        "rollout.layout.num_prompts=2",
        "method.ratio_clip=0.1",  # bfloat16
        "checkpoint.every=1",
        "evaluation.every=1",
    )


@pytest.fixture(scope="module")
def finished(config, overrides, tmp_path_factory) -> Path:
    """The run's directory, after two iterations in one go."""
    cfg = config(*overrides, f"runs_root={tmp_path_factory.mktemp('runs')}")
    return loop.run(cfg, cfg.run_name)


def _state(directory: Path) -> dict:
    return checkpoint.newest(directory)


def test_the_recipe_trains_adapters_and_saves_nothing_else(finished):
    records = list(read_records(finished))
    assert [record["kind"] for record in records] == ["evaluation", "iteration", "iteration", "evaluation"]
    assert records[1]["optimizer_steps"] == 2 and records[1]["gradient_norm"] > 0
    state = _state(finished)
    assert state["parameters"].keys() == state["ema"].keys() == {name for name in state["ema"] if ".lora_" in name}
    assert all(value.dtype == torch.float32 for value in state["parameters"].values())


def test_the_recipe_can_be_diagnosed_and_costs_what_was_said(config, overrides):
    trainer = build.prepare_trainer(config(*overrides), Ranks("cpu"))
    said, found = spending(trainer, 2, 2), diagnosed(trainer, 2, 2)
    trainer.meter.settle()
    assert (said.forwards, said.backwards) == (
        trainer.meter.cost.forward_evaluations,
        trainer.meter.cost.backward_evaluations,
    )
    assert said.gradients_gb == pytest.approx(8 * 4e-9 * sum(p.numel() for p in trainer.policy.trainable().values()))
    assert found.gradient.norm > 0 and found.video_distance > 0 and found.reward.std > 0
    assert all(parameter.grad is None for parameter in trainer.policy.trainable().values())


def test_an_interrupted_and_resumed_run_ends_with_the_same_weights(config, overrides, tmp_path, finished):
    for iterations in (1, 2):
        cfg = config(*overrides, f"runs_root={tmp_path}", f"budget.iterations={iterations}")
        directory = loop.run(cfg, cfg.run_name)
    for part in ("parameters", "ema"):
        assert all(torch.equal(value, _state(finished)[part][name]) for name, value in _state(directory)[part].items())
    kept = [record for record in read_records(directory) if record["kind"] == "iteration"]
    once = [record for record in read_records(finished) if record["kind"] == "iteration"]
    assert [record["loss"] for record in kept] == [record["loss"] for record in once]


def _averaged(directory: Path):
    manifest = read_manifest(directory)
    manifest.config["model"]["dtype"] = "float32"
    policy = stored.policy_of(manifest, stored.saved_state(directory, None), "cpu")
    EMA(policy.trainable(), decay=0.9, every=1).load(_state(directory)["ema"])
    return policy


def _velocity(transformer, policy):
    x = keyed.normal(policy.latent_shape, "export")[None].to(transformer.dtype)
    condition = policy.encode(wan_pipeline.SENTENCES[:1]).to(transformer.dtype)
    with torch.no_grad():
        return transformer(x, torch.tensor([700]), condition, return_dict=False)[0].float()


def test_exported_adapters_give_wan_pipeline_the_same_velocity(finished, wan_folder, capsys):
    export_main([str(finished)])
    folder = Path(capsys.readouterr().out.strip())
    pipeline = WanPipeline.from_pretrained(wan_folder, dtype=torch.float32)
    policy = _averaged(finished)
    base = _velocity(pipeline.transformer, policy)
    pipeline.load_lora_weights(folder)
    loaded = _velocity(pipeline.transformer, policy)
    torch.testing.assert_close(loaded, _velocity(policy.transformer, policy), atol=1e-5, rtol=1e-4)
    assert (loaded - base).abs().max() > 1e-4


def test_export_needs_nothing_that_only_the_run_s_device_has(finished, tmp_path):
    exported = export(finished)
    elsewhere = shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((elsewhere / "run.json").read_text())
    manifest["config"]["model"] |= {"attention": "_native_cudnn", "compile": True}  # neither on a CPU
    (elsewhere / "run.json").write_text(json.dumps(manifest))
    ours, theirs = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (exported, export(elsewhere)))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_whole_transformer_is_exported_where_all_of_it_was_trained(train, overrides):
    full = [item for item in overrides if "recipe" not in item]
    directory = train("recipe=wan21_1p3b", *full, "optim=tiny", "optim.optimizer.lr=1e-3", "budget.iterations=1")
    loaded = WanTransformer3DModel.from_pretrained(export(directory) / "transformer", dtype=torch.float32)
    policy = _averaged(directory)
    torch.testing.assert_close(_velocity(loaded, policy), _velocity(policy.transformer, policy), atol=1e-6, rtol=0)


@pytest.mark.parametrize("argv", [["nowhere"], ["{run}", "--iteration", "7"]])
def test_export_tells_what_is_missing(finished, argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        export_main([item.format(run=finished) for item in argv])
    assert "error: " in capsys.readouterr().err


def test_a_run_that_drifts_stops_and_says_what_to_do(config, tmp_path):
    cfg = config(f"runs_root={tmp_path}")
    prepared = loop.load(cfg, loop.claim(cfg, "drifting"))
    velocity, policy = prepared.trainer.policy.velocity, prepared.trainer.policy
    policy.velocity = lambda *inputs: velocity(*inputs) + (0.3 if torch.is_grad_enabled() else 0)
    with pytest.raises(
        DriftError, match=r"differ from 1 by up to .*, more than method.ratio_clip=0.001.*rollout.batch"
    ):
        prepared.to_the_end(stop.StopRequest())
    assert [path.name for path in checkpoint.complete(prepared.path)] == ["000000"]


def test_a_run_does_not_drift_where_rollout_and_replay_compute_alike(config, overrides):
    trainer = build.prepare_trainer(config(*overrides), Ranks("cpu"))
    assert trainer.iterate(1).ratio_drift < 1e-3


def test_evaluate_pairs_a_checkpoint_with_its_base(finished, tmp_path, capsys):
    evaluate_main([str(finished), "--output", str(tmp_path), "evaluation.sampler.noises_per_prompt=2"])
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(result) == ["base", "000002", "paired"] and result["paired"]["000002"]["n"] == 2
    gain = result["000002"]["reward_mean"] - result["base"]["reward_mean"]
    assert result["paired"]["000002"]["mean"] == pytest.approx(gain, abs=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "000002" / "manifest.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["index"]) for line in lines] == [
        (text, index) for text in wan_pipeline.SENTENCES[2:] for index in (0, 1)
    ]
    assert all((tmp_path / "000002" / line["file"]).stat().st_size > 0 for line in lines)
    assert (tmp_path / "base" / "videos" / f"{wan_pipeline.SENTENCES[2]}-1.mp4").is_file()
    assert "paired" in capsys.readouterr().out


def test_evaluate_agrees_with_the_runs_own_evaluations(finished, tmp_path):
    evaluate_main([str(finished), "--output", str(tmp_path)])
    result = json.loads((tmp_path / "evaluation.json").read_text())
    rewards = [record["reward_mean"] for record in read_records(finished) if record["kind"] == "evaluation"]
    assert [result["base"]["reward_mean"], result["000002"]["reward_mean"]] == pytest.approx(rewards, abs=1e-6)


def test_evaluate_takes_a_model_without_a_run_and_rewards_by_name(overrides, tmp_path):
    recipe = [item for item in overrides if not item.startswith("reward=")]
    sizes = ["evaluation.sampler.schedule.num_steps=2", "evaluation.sampler.batch=2", "device=cpu"]
    rewards = ["--reward", "brightness"]
    evaluate_main(["BASE", *recipe, *sizes, *rewards, "--output", str(tmp_path)])
    assert list(json.loads((tmp_path / "evaluation.json").read_text())) == ["base"]


@pytest.mark.parametrize("argv", [["nowhere"], ["BASE", "model=no_such"], ["{run}", "--vbench", "nowhere.json"]])
def test_evaluate_tells_what_is_wrong_in_one_line(finished, argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate_main([item.format(run=finished) for item in argv])
    assert capsys.readouterr().err.startswith("error: ")
