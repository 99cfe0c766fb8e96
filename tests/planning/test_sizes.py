"""The closed forms of weights and FLOPs are what torch counts on the meta device."""

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from flash_grpo.planning import decoder
from flash_grpo.planning.memory import ENCODER, weights
from flash_grpo.planning.model import model_of
from flash_grpo.planning.wan import Adapters, wan
from flash_grpo.policies.flops import decode_flops, unit_flops
from flash_grpo.policies.loading import random_transformer, random_vae
from flash_grpo.policies.lora import add_lora
from flash_grpo.policies.vae import WanVideoDecoder

REAL = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 4}
SMALL = {"num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 256, "num_layers": 3, "text_dim": 32}
LORA = {"rank": 16, "alpha": 32, "targets": ["to_q", "to_k", "to_v", "to_out.0"], "init": "gaussian", "seed": 0}


@pytest.mark.parametrize(("architecture", "shape", "text"), [(REAL, (16, 21, 60, 104), 512), (SMALL, (16, 3, 4, 4), 8)])
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_weights_and_flops_are_those_of_the_model(architecture, shape, text, lora, checkpointing):
    sizes, adapters = wan(architecture), lora and Adapters(rank=lora["rank"], targets=tuple(lora["targets"]))
    with torch.device("meta"):
        transformer, vae = WanTransformer3DModel(**architecture), WanVideoDecoder(AutoencoderKLWan())
    expected = unit_flops(transformer, vae, shape, text, lora, checkpointing)
    found = sizes.flops(sizes.tokens(shape), text, adapters, checkpointing)
    for work in ("forward", "backward", "recompute"):
        assert getattr(found, work) == pytest.approx(getattr(expected, work), rel=1e-9)
    assert sizes.parameters() == sum(parameter.numel() for parameter in transformer.parameters())
    assert sizes.block_parameters() == sum(parameter.numel() for parameter in transformer.blocks[0].parameters())
    if lora:
        add_lora(transformer, **lora)
        trained = [parameter.numel() for parameter in transformer.parameters() if parameter.requires_grad]
        assert sizes.adapter_parameters(adapters) == sum(trained)


def test_a_timestep_for_each_token_costs_what_torch_counts(config):
    cfg = config("recipe=wan22_5b", "prompts.train=a", "prompts.test=b", "model.architecture.num_layers=2")
    model = model_of(cfg, "wan22_5b")
    with torch.device("meta"):
        transformer, vae = WanTransformer3DModel(**cfg.model.architecture), WanVideoDecoder(random_vae(cfg.model.vae))
    lora = {key: value for key, value in LORA.items() if key != "seed"} | {"seed": 0}
    expected = unit_flops(transformer, vae, model.latent_shape, 512, lora, True, True)
    for work in ("forward", "backward", "recompute", "decode"):
        assert getattr(model.flops, work) == pytest.approx(getattr(expected, work), rel=1e-9)


@pytest.mark.parametrize(
    ("coder", "arguments", "shape"),
    [
        (decoder.WAN, {}, (16, 21, 60, 104)),
        (decoder.WAN, {}, (16, 1, 8, 16)),
        (decoder.WAN_5B, "recipe=wan22_5b", (48, 31, 44, 80)),
        (decoder.WAN_5B, "recipe=wan22_5b", (48, 3, 8, 8)),
    ],
)
def test_decoding_costs_what_torch_counts(config, coder, arguments, shape):
    chosen = config(arguments, "prompts.train=a", "prompts.test=b").model.vae if arguments else {}
    with torch.device("meta"):
        vae = random_vae(chosen)
    assert coder.flops(shape) == pytest.approx(decode_flops(WanVideoDecoder(vae), shape), rel=1e-9)
    assert sum(parameter.numel() for parameter in vae.parameters()) == coder.parameters


def test_a_model_of_two_experts_holds_both_and_trains_those_that_the_method_reaches(config):
    given = ("recipe=wan22_a14b", "schedule.num_steps=20", "prompts.train=a", "prompts.test=b")
    alone, one = (model_of(config(recipe, *given[1:]), "x") for recipe in ("recipe=wan21_14b", "recipe=wan22_a14b"))
    both = model_of(config(*given, "rollout.last_candidate=16"), "x")
    assert (alone.experts, one.experts, both.experts) == (1, 2, 2)
    assert one.trainable == alone.trainable and both.trainable == 2 * alone.trainable
    assert weights(one, 1) - 4 * one.trainable == 2 * (weights(alone, 1) - 4 * alone.trainable)


def test_each_phase_has_its_own_guidance(config):
    given = ("recipe=wan21_1p3b", "prompts.train=a", "prompts.test=b")
    model = model_of(config(*given, "training.guidance=1", "evaluation.guidance=3"), "x")
    found = (model.evaluations_per_velocity, model.training_evaluations, model.evaluation_evaluations)
    assert found == (2, 1, 2)


def test_the_tiny_world_s_model_is_the_one_that_ships(config, trainer):
    cfg = config()
    policy, model = trainer().policy, model_of(cfg, "tiny")
    assert model.flops == policy.flops
    assert model.latent_shape == policy.latent_shape and model.video_shape == (9, 16, 16, 3)
    assert model.trainable == sum(parameter.numel() for parameter in policy.trainable().values())


def test_the_bytes_of_frozen_weights_are_those_that_are_held(config):
    cfg = config("model=wan21_1p3b", "optim=lora", "model.shard=true")
    held = random_transformer(dict(cfg.model.architecture), torch.bfloat16, torch.device("meta"))
    frozen = sum(parameter.numel() * parameter.element_size() for parameter in held.parameters())
    model = model_of(cfg, "wan21_1p3b")
    assert weights(model, 1) == frozen + 4 * model.trainable
    assert weights(model, 8) < 0.25 * frozen


def test_the_text_encoder_has_the_weights_that_are_planned_for():
    """UMT5-XXL, as configured in Wan2.1's text_encoder/config.json."""
    config = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == ENCODER
