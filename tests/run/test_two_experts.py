"""The tiny world's transformer twice, one for high noise and one for low: a run from rollout to export."""

import logging
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from hydra import compose, initialize_config_dir
from untimed import untimed

from flash_grpo.algorithm import keyed
from flash_grpo.evaluate import main as evaluate_main
from flash_grpo.export import export
from flash_grpo.policies.source import SHIPPED
from flash_grpo.records.files import read_manifest, read_records
from flash_grpo.run import build, checkpoint, loop, stop, stored
from flash_grpo.run.compose import CONF
from flash_grpo.training.ema import EMA
from flash_grpo.training.trainer import Trainer

CHOSEN = (
    "model=tiny_two_experts",
    "optim=lora",
    "optim.optimizer.lr=1e-2",
    "optim.ema.every=1",
    "model.guidance=2",
    "model.guidance_2=1.5",
    "method.kl_weight=0.01",
    "training.optimizer_steps=2",
    "training.batch=3",
    "checkpoint.every=1",
    "budget.iterations=3",
)
NAMES = ("transformer", "transformer_2")
STEPS = 6


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """The directory of a run of three iterations in one go."""
    cfg = config(*CHOSEN, f"runs_root={tmp_path_factory.mktemp('two')}")
    return loop.run(cfg, cfg.run_name)


def test_both_are_trained_and_the_record_says_how_often(finished):
    iterations = [record for record in read_records(finished) if record["kind"] == "iteration"]
    for record in iterations:
        assert sum(record["expert_shares"].values()) == pytest.approx(1)
        high = sum(record["steps"][:3])  # timesteps 999, 967, 930 of 11; the boundary is at 900
        assert record["expert_shares"]["transformer"] == pytest.approx(high)
        assert record["ratio_drift"] < 1e-5
    seen = {name for record in iterations for name in record["expert_gradient_norms"]}
    assert seen == set(NAMES)
    trained, base = checkpoint.newest(finished)["parameters"], _policy(finished).trainable()
    for name in NAMES:
        assert any(".lora_B." in key and value.any() for key, value in trained.items() if key.startswith(f"{name}."))
    assert trained.keys() == base.keys()


def test_a_run_left_inside_an_iteration_goes_on_bit_identically(config, tmp_path, monkeypatch, finished):
    update, asked = Trainer.update, []

    def asking(self, rollouts, advantage_PG):
        if rollouts.batch.iteration == 2 and not asked:
            asked.append(True)
            signal.raise_signal(signal.SIGTERM)
        return update(self, rollouts, advantage_PG)

    monkeypatch.setattr(Trainer, "update", asking)
    cfg = config(*CHOSEN, f"runs_root={tmp_path}")
    with suppress(stop.Interrupted):
        loop.run(cfg, cfg.run_name)
    assert any("+" in path.name for path in checkpoint.complete(tmp_path / "default/small"))
    directory = loop.run(cfg, cfg.run_name)
    records = [[untimed(record) for record in read_records(run)] for run in (directory, finished)]
    assert records[0] == records[1]
    states = [checkpoint.newest(run) for run in (directory, finished)]
    for part in ("parameters", "ema"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())


def _policy(directory: Path):
    """The run's model with its averaged weights."""
    state = stored.saved_state(directory, None)
    policy = stored.policy_of(read_manifest(directory), state, "cpu")
    EMA(policy.trainable(), decay=0.9, every=1).load(state["ema"])
    return policy


def _pipeline() -> WanPipeline:
    """Diffusers' own, of the same two transformers. Its latents are decoded by the policy: the tiny codec is not its."""
    high, low = (WanTransformer3DModel.from_pretrained(SHIPPED["tiny_wan"], subfolder="transformer") for _ in NAMES)
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=high,
        transformer_2=low,
        boundary_ratio=0.9,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def _video(pipeline: WanPipeline, policy, guidance: float, guidance_2: float) -> torch.Tensor:
    texts = ["a red square", "a blue circle"]
    latent = pipeline(
        prompt_embeds=policy.encode(texts),
        negative_prompt_embeds=policy.encode(["", ""]),
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        guidance_scale_2=guidance_2,
        height=16,
        width=16,
        num_frames=9,
        latents=torch.stack([keyed.normal(policy.latent_shape, "two", index) for index in range(2)]),
        output_type="latent",
    ).frames
    return policy.codec.decode(latent)


def test_both_adapters_give_wan_pipeline_the_video_of_the_averaged_policy(finished):
    folder, policy, pipeline = export(finished), _policy(finished), _pipeline()
    base = _video(pipeline, policy, 2, 1.5)
    pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    pipeline.load_lora_weights(folder, weight_name="pytorch_lora_weights_2.safetensors", load_into_transformer_2=True)
    loaded = _video(pipeline, policy, 2, 1.5)
    ours = _pipeline()
    ours.transformer, ours.transformer_2 = policy.transformers.values()
    torch.testing.assert_close(loaded, _video(ours, policy, 2, 1.5), atol=1e-5, rtol=1e-5)
    assert (loaded - base).abs().max() > 1e-3


def test_evaluation_takes_the_run_s_two_experts(finished, tmp_path, capsys):
    evaluate_main([str(finished), "--output", str(tmp_path / "out")])
    last = [record for record in read_records(finished) if record["kind"] == "evaluation"][-1]
    assert f"{last['reward_mean']:.3f}" in capsys.readouterr().out


def test_an_expert_that_is_never_reached_gets_no_adapter_and_the_run_says_so(train, caplog):
    caplog.set_level(logging.INFO)
    directory = train(*CHOSEN, "rollout.last_candidate=2", "budget.iterations=1")
    assert "transformer_2 computes timesteps below 900, which method.plan never trains" in caplog.text
    assert all(name.startswith("transformer.") for name in checkpoint.newest(directory)["ema"])
    assert [path.name for path in export(directory).glob("*.safetensors")] == ["pytorch_lora_weights.safetensors"]


def test_low_noise_alone_is_exported_under_a_name_that_does_not_load_into_high_noise(train):
    directory = train(*CHOSEN, "method.plan.first_step=3", "model.experts=[transformer_2]", "budget.iterations=1")
    assert [path.name for path in export(directory).glob("*.safetensors")] == ["pytorch_lora_weights_2.safetensors"]


def test_every_weight_of_both_is_exported(train):
    directory = train("model=tiny_two_experts", "optim.optimizer.lr=1e-3", "budget.iterations=1")
    folder, policy = export(directory), _policy(directory)
    for name, transformer in policy.transformers.items():
        loaded = WanTransformer3DModel.from_pretrained(folder / name).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in transformer.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.experts=[transformer]"],
            r"method\.plan draws steps 0-9 of 11, .*transformer computes steps 0-2, transf",
        ),
        (["model.boundary=1.5"], r"model\.boundary=1\.5: must be"),
        (["model.guidance=2", "model.guidance_2=1"], r"guides both transformers or none"),
        (["model.split=false"], r"has one transformer; set it to null, or set model\.split=true"),
        (["model=tiny", "+model.guidance_2=2"], r"model\.guidance_2=2: the model has one transformer"),
        (["model=tiny", "+model.experts=[transformer]"], r"the model has one transformer; give model\.boundary"),
        (["model.experts=[transformer_3]"], r"model\.experts=transformer_3: allowed are transformer, transformer_2"),
    ],
)
def test_what_does_not_fit_two_experts_is_refused_in_one_line(trainer, overrides, message):
    with pytest.raises(build.ConfigError, match=message) as caught:
        trainer("model=tiny_two_experts", *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_two_learn(tmp_path):
    """As in tests/tiny_world/test_learning.py, with a weight for each half of the noise."""
    chosen = ["model=tiny_two_experts", "seed=4", "budget.pflop=2e-4", f"runs_root={tmp_path}", "run_name=learns"]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [*chosen, "evaluation.every=1"])
    evaluations = [record for record in read_records(loop.run(cfg, "learns")) if record["kind"] == "evaluation"]
    before, after = evaluations[0]["prompt_rewards"], evaluations[-1]["prompt_rewards"]
    gains = torch.tensor([after[text] - before[text] for text in before])
    assert gains.mean() - 1.96 * gains.std() / len(gains) ** 0.5 > 0
