"""A real Wan pipeline, small and on disk, goes the way of Wan2.1-1.3B; the real shapes are checked on torch's meta device."""

import os
from collections import Counter
from dataclasses import replace

import pytest
import torch
import wan_pipeline
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from hydra.utils import instantiate
from torch.utils.flop_counter import FlopCounterMode

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.cost import Counts
from flash_grpo.algorithm.denoise import denoise
from flash_grpo.algorithm.noise import NoiseKeys
from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.policies.flops import decode_flops, unit_flops
from flash_grpo.policies.loading import random_transformer
from flash_grpo.policies.lora import add_lora
from flash_grpo.policies.vae import WanVideoDecoder
from flash_grpo.policies.wan import WanPolicy
from flash_grpo.recompose import composed_outside
from flash_grpo.run.build import ConfigError, build

LORA = {"rank": 4, "alpha": 8, "targets": ["to_q", "to_k", "to_v", "to_out.0"], "init": "gaussian", "seed": 0}
TEXTS = wan_pipeline.SENTENCES


@pytest.fixture
def policy(wan_folder, tmp_path):
    """`policy(dtype="bfloat16")`: the small pipeline as a policy."""

    def loaded(**options):
        options = {"guidance": 4.5, "device": torch.device("cpu"), "height": 32, "width": 32, **options}
        return WanPolicy(path=str(wan_folder), frames=5, max_text_tokens=wan_pipeline.TEXT_TOKENS, **options)

    return loaded


def _velocity_inputs(policy, count=2):
    x = torch.stack([keyed.normal(policy.latent_shape, "test", index) for index in range(count)])
    return x, torch.tensor([900, 300])[:count], policy.encode(TEXTS[:count])


def _perturbed(policy):
    """As after some training."""
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter.add_(0.1 * keyed.normal(parameter.shape, "perturbed", name))
    return policy


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_ode_rollout_and_decoding_equal_wan_pipeline(policy, wan_folder, guidance):
    ours = policy(guidance=guidance)
    keys = NoiseKeys(initial_B=(("wan", 0), ("wan", 1)))
    noise = torch.stack([keyed.normal(ours.latent_shape, *key) for key in keys.initial_B])
    pipeline = WanPipeline.from_pretrained(wan_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    options = {
        "prompt": list(TEXTS[:2]),
        "negative_prompt": "",
        "num_inference_steps": 6,
        "guidance_scale": guidance,
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "max_sequence_length": wan_pipeline.TEXT_TOKENS,
    }
    latent = pipeline(**options, latents=noise, output_type="latent").frames
    video = pipeline(**options, latents=noise, output_type="pt").frames
    sigma_S = pipeline.scheduler.sigmas
    grid = replace(flow_schedule(6), sigma_S=sigma_S, timestep_T=pipeline.scheduler.timesteps, dt_T=sigma_S.diff())
    mask_BT = torch.zeros(2, 6, dtype=torch.bool)
    mine = denoise(ours, ours.encode(TEXTS[:2]), keys, grid, mask_BT).latent_BCFHW
    torch.testing.assert_close(mine, latent, atol=1e-4, rtol=0)
    assert (latent - noise).abs().mean() > 0.1
    decoded = ours.decode(mine).permute(0, 1, 4, 2, 3).float() / 255
    torch.testing.assert_close(decoded, video, atol=0.5 / 255 + 1e-4, rtol=0)


@pytest.mark.parametrize("lora", [None, LORA])
def test_another_guidance_shares_all_weights_and_is_the_model_with_that_guidance(policy, lora):
    guided = _perturbed(policy(lora=lora))
    guided.keep_base()
    plain, alone = guided.with_guidance(1.0), _perturbed(policy(lora=lora, guidance=1.0))
    inputs = _velocity_inputs(guided)
    assert (guided.evaluations_per_velocity, plain.evaluations_per_velocity) == (2, 1)
    assert torch.equal(plain.velocity(*inputs), alone.velocity(*inputs))
    assert all(value is guided.trainable()[name] for name, value in plain.trainable().items())
    assert not torch.equal(plain.base_velocity(*inputs), guided.base_velocity(*inputs))


def test_guidance_matters_and_the_prompt_is_heard(policy):
    inputs = _velocity_inputs(policy())
    guided, plain = (policy(guidance=scale).velocity(*inputs) for scale in (4.5, 1.0))
    assert (guided - plain).abs().max() > 1e-3
    x, timestep, condition = inputs
    assert (guided - policy().velocity(x, timestep, condition.flip(0))).abs().max() > 1e-3


@pytest.mark.parametrize("lora", [LORA, None])
def test_velocity_is_float32_whatever_the_transformer_computes_in(policy, lora):
    whole, half = policy(lora=lora), policy(lora=lora, dtype="bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in half.trainable().values())
    assert half.transformer.proj_out.weight.dtype == (torch.bfloat16 if lora else torch.float32)
    inputs = _velocity_inputs(whole)
    velocity = half.velocity(*inputs)
    assert velocity.dtype == torch.float32
    difference = (velocity - whole.velocity(*inputs)).abs().mean() / velocity.abs().mean()
    assert 1e-4 < difference < 0.05  # it did compute in bfloat16


def test_random_weights_have_the_dtypes_of_loaded_ones(policy):
    loaded = policy(lora=LORA, dtype="bfloat16").transformer
    made = random_transformer(dict(loaded.config), torch.bfloat16, torch.device("cpu"))
    dtypes = {name: parameter.dtype for name, parameter in made.named_parameters()}
    assert dtypes == {
        name.replace(".base_layer", ""): parameter.dtype
        for name, parameter in loaded.named_parameters()
        if "lora_" not in name
    }


def test_gradient_checkpointing_changes_no_gradient(policy):
    gradients = []
    for checkpointing in (False, True):
        wan = _perturbed(policy(lora=LORA, gradient_checkpointing=checkpointing))
        wan.velocity(*_velocity_inputs(wan)).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in wan.trainable().items()})
    torch.testing.assert_close(*gradients)


def test_base_velocity_stays_that_of_the_base_and_leaves_adapters_trainable(policy):
    for lora in (LORA, None):
        wan = policy(lora=lora)
        wan.keep_base()
        inputs = _velocity_inputs(wan)
        base = policy().velocity(*inputs)
        torch.testing.assert_close(wan.velocity(*inputs), base)
        _perturbed(wan)
        velocity = wan.velocity(*inputs)
        assert (velocity - base).abs().max() > 1e-3
        torch.testing.assert_close(wan.base_velocity(*inputs), base)
        velocity.mean().backward()
        assert all(value.grad is not None for name, value in wan.trainable().items() if "norm" not in name)


def test_adapters_are_drawn_by_key(policy):
    first, second, other = (policy(lora={**LORA, "seed": seed}).trainable() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_text_is_encoded_once_and_the_encoder_is_not_loaded_again(policy, tmp_path):
    direct = policy().encode(TEXTS)
    cached = policy(embedding_cache=str(tmp_path / "text"))
    torch.testing.assert_close(cached.encode(TEXTS), direct, rtol=0, atol=0)
    assert len(list((tmp_path / "text").glob("*.safetensors"))) == len(TEXTS)
    again = policy(embedding_cache=str(tmp_path / "text"))
    again.encode._encoder_on_device = lambda: pytest.fail("encoded twice")
    torch.testing.assert_close(again.encode(TEXTS), direct, rtol=0, atol=0)


def test_prefetched_texts_load_the_encoder_once(policy, tmp_path, monkeypatch):
    direct, wan = policy().encode(TEXTS), policy(embedding_cache=str(tmp_path))
    encoder, came = wan.encode._encoder_on_device, []
    monkeypatch.setattr(wan.encode, "_encoder_on_device", lambda: came.append(True) or encoder())
    wan.prefetch(TEXTS)
    for index, text in enumerate(TEXTS):
        torch.testing.assert_close(wan.encode([text])[0], direct[index], rtol=0, atol=0)
    wan.encode([wan.negative_prompt])
    assert len(came) == 1


def test_an_iteration_loads_the_encoder_once_whatever_the_micro_batch(trainer, wan_folder, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    prompts = [f"prompts.{part}={tmp_path / 'prompts.txt'}" for part in ("train", "test")]
    chosen = ["model=wan21_1p3b", f"model.path={wan_folder}", *wan_pipeline.SHAPE, "model.dtype=float32"]
    small = trainer(*chosen, f"model.embedding_cache={tmp_path / 'text'}", "prompts=file", *prompts,
                    "reward=brightness", "optim=lora", "rollout.batch=1")  # fmt: skip
    encoder, came = small.policy.encode._encoder_on_device, []
    monkeypatch.setattr(small.policy.encode, "_encoder_on_device", lambda: came.append(True) or encoder())
    small.rollouts.scored(small.layout.batch(1, list(TEXTS[:2]), rank=0))
    assert len(came) == 1


@pytest.mark.parametrize(
    ("optim", "warning"),
    [
        (
            "tiny",
            "the tiny world's sizes: every weight is trained (optim=lora), rollout.batch=64, training.batch=64, "
            "evaluation.sampler.batch=64; recipe=",
        ),
        ("lora", "the tiny world's sizes: rollout.batch=64, training.batch=64, evaluation.sampler.batch=64; recipe="),
    ],
)
def test_a_large_model_with_the_tiny_worlds_sizes_gets_a_warning(trainer, wan_folder, caplog, optim, warning):
    trainer("model=wan21_1p3b", f"model.path={wan_folder}", *wan_pipeline.SHAPE, f"optim={optim}", "reward=brightness")
    assert warning in caplog.text
    caplog.clear()
    trainer()
    assert "sizes" not in caplog.text


@pytest.mark.parametrize("cache", [True, False])
def test_few_texts_stay_in_memory_and_each_without_padding(policy, tmp_path, monkeypatch, cache):
    monkeypatch.setattr("flash_grpo.policies.text.IN_MEMORY", 2)
    direct = policy().encode(TEXTS)
    wan = policy(embedding_cache=str(tmp_path) if cache else None)
    torch.testing.assert_close(wan.encode(TEXTS), direct, rtol=0, atol=0)
    kept = wan.encode._memory
    assert list(kept) == list(TEXTS[2:])
    assert all(value.untyped_storage().nbytes() == value.numel() * value.element_size() for value in kept.values())
    assert max(len(value) for value in kept.values()) < wan_pipeline.TEXT_TOKENS
    wan.encode(TEXTS[2:3])
    wan.encode(TEXTS[:1])
    assert list(kept) == [TEXTS[2], TEXTS[0]]  # the one that was asked for longer ago went
    torch.testing.assert_close(wan.encode(TEXTS), direct, rtol=0, atol=0)


def test_another_encoder_does_not_read_the_cache(policy, wan_folder, tmp_path):
    first = policy(embedding_cache=str(tmp_path)).encode.file("a")
    weights = wan_folder / "text_encoder" / "model.safetensors"
    stat = weights.stat()
    try:
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert policy(embedding_cache=str(tmp_path)).encode.file("a") != first
    finally:
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert policy(embedding_cache=str(tmp_path)).encode.file("a") == first
    assert policy(embedding_cache=str(tmp_path), dtype="bfloat16").encode.file("a") != first


def test_tiles_and_slices_decode_the_same_shape(policy):
    x, _, _ = _velocity_inputs(policy())
    whole, parts = policy().decode(x), policy(tiling=True, slicing=True).decode(x)
    assert whole.shape == (2, 5, 32, 32, 3) and whole.dtype == torch.uint8
    assert (whole.int() - parts.int()).abs().max() <= 1  # smaller than a tile; one at a time rounds otherwise


def test_tiles_of_a_video_larger_than_one_decode_to_nearly_the_same(policy):
    x = keyed.normal(policy(height=320).latent_shape, "tiles")[None]
    whole, tiled = (policy(height=320, tiling=tiling).codec.decode(x) for tiling in (False, True))
    assert tiled.shape == whole.shape == (1, 5, 320, 32, 3)
    apart = (tiled - whole).abs()
    assert 0 < apart.mean() < 0.05 * whole.std()  # the VAE's attention and the tiles' edges see less
    assert apart[:, :, :128].mean() < 0.02 * whole.std()  # far from the edge


def test_compiled_blocks_compute_the_same(policy, monkeypatch):
    """Captured with their backward, not translated to C++, which takes half a minute."""
    compiled = WanTransformer3DModel.compile_repeated_blocks
    monkeypatch.setattr(
        WanTransformer3DModel, "compile_repeated_blocks", lambda self: compiled(self, backend="aot_eager")
    )
    captured = Counter(torch._dynamo.utils.counters["stats"])
    results = []
    for compile in (False, True):
        wan = _perturbed(policy(lora=LORA, compile=compile))
        velocity = wan.velocity(*_velocity_inputs(wan))
        velocity.square().mean().backward()
        results.append((velocity.detach(), {name: value.grad for name, value in wan.trainable().items()}))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > captured["unique_graphs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "Wan-AI/No-Such-Model", "revision": "0" * 40}, r"hf download Wan-AI/No-Such-Model --revision 0000"),
        ({"path": "Wan-AI/No-Such-Model"}, "needs a pinned revision"),
        ({"path": "/nowhere"}, "no such folder"),
        ({"lora": {**LORA, "targets": ["to_q", "add_k_proj"]}}, "add_k_proj match no linear layer"),
        ({"lora": {**LORA, "rank": 0}}, "at least 1"),
        ({"dtype": "float16"}, "allowed are float32, bfloat16"),
        ({"weights": "some"}, "allowed are pretrained, random"),
        ({"attention": "none_such"}, "model.attention=none_such"),
        ({"frames": 6}, "1 \\+ a multiple of 4"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(config, wan_folder, options, message):
    cfg = config("model=wan21_1p3b", f"model.path={wan_folder}", *wan_pipeline.SHAPE)
    with pytest.raises(ConfigError, match=message) as caught:
        build({**cfg.model, "revision": None, **options}, "model", device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_an_attention_backend_without_a_gradient_is_refused(policy, monkeypatch):
    monkeypatch.setattr(
        _AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE
    )  # global in diffusers
    assert policy(attention="_native_math").transformer
    name, backends = AttentionBackendName._NATIVE_MATH, _AttentionBackendRegistry._backends
    backend = backends[name]

    def fails(*args, **more):
        raise RuntimeError("no\nbackward")

    def in_part(query, key, value, **more):
        return backend(query.detach(), key, value, **more)

    for without, message in ((lambda *args, **more: backend(*args, **more).detach(), "RuntimeError: element 0"),
                             (in_part, "here; native does"), (fails, "RuntimeError: no")):  # fmt: skip
        monkeypatch.setitem(backends, name, without)
        with pytest.raises(ValueError, match=r"model\.attention=_native_math: it gives no gradient here") as caught:
            policy(attention="_native_math")
        assert message in str(caught.value) and "\n" not in str(caught.value)


def by_hand(config) -> tuple[float, float]:
    """Return the FLOPs of a forward at 480 x 832 x 81, and those of its frozen matrices alone, without attention's products.

    Per block, with N tokens, M text tokens, width d and feed-forward width f: eight d x d matrices, six on tokens and two on
    text; two d x f; attention's two products over tokens and two over text. A multiplication and an addition are two.
    """
    tokens, text, width = 21 * 30 * 52, 512, config["num_attention_heads"] * config["attention_head_dim"]
    matrices = 2 * width * (6 * tokens * width + 2 * text * width + 2 * tokens * config["ffn_dim"])
    attention = 4 * width * tokens * (tokens + text)
    ends = 2 * tokens * 64 * width * 2 + 2 * text * width * (config["text_dim"] + width)
    layers = config["num_layers"]
    return layers * (matrices + attention) + ends, layers * matrices + ends


def test_the_tiny_worlds_forward_counts_its_attention(trainer):
    flops = trainer().policy.flops
    assert flops.forward == 9_314_304
    assert flops.recompute == 0


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_decoding_is_counted_frame_by_frame(frames):
    with torch.device("meta"):  # where attention is counted too
        vae, latent = AutoencoderKLWan(base_dim=8), torch.zeros(1, 16, frames, 4, 4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(latent)
    assert decode_flops(WanVideoDecoder(vae), (16, frames, 4, 4)) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("model", "parameters", "tflop", "lora"),
    [("wan21_1p3b", 1_418_996_800, 283.0, 11_796_480), ("wan21_14b", 14_288_491_584, 1678.4, 52_428_800)],
)
def test_the_real_models_have_their_sizes_on_the_meta_device(config, model, parameters, tflop, lora):
    cfg = config(f"model={model}", "optim=lora")
    assert (cfg.model.height, cfg.model.width, cfg.model.frames) == (480, 832, 81)
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**cfg.model.architecture)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == parameters
    sizes = (16, 21, 60, 104), cfg.model.max_text_tokens
    vae = WanVideoDecoder(AutoencoderKLWan())
    flops = unit_flops(transformer, vae, *sizes, gradient_checkpointing=True)
    assert flops.forward / 1e12 == pytest.approx(tflop, abs=0.05)
    assert flops.decode / 1e15 == pytest.approx(0.275, abs=0.0005)
    forward, projections = by_hand(transformer.config)
    assert flops.forward == pytest.approx(forward, rel=2e-4)
    assert flops.backward == pytest.approx(2 * forward, rel=2e-4)
    assert flops.recompute == pytest.approx(forward, rel=2e-4)
    adapted = unit_flops(transformer, vae, *sizes, cfg.optim.lora)
    assert adapted.forward > flops.forward and adapted.forward < 1.01 * flops.forward
    assert adapted.backward == pytest.approx(2 * forward - projections, rel=0.01)
    assert adapted.recompute == 0
    add_lora(transformer, **cfg.optim.lora)
    assert sum(value.numel() for value in transformer.parameters() if value.requires_grad) == lora


@pytest.mark.parametrize("checkpointing", [True, False])
def test_an_iteration_of_flash_on_the_1_3b_by_hand(config, checkpointing):
    """48 x 8 videos of 20 guided velocities, and one state of each trained, by LoRA of rank 16 on eight matrices a block.

    A LoRA's backward goes through every matrix and every adapter for the input's gradient, and makes a second product for
    each adapter and each product of attention, but none for a frozen matrix.
    """
    cfg = config("model=wan21_1p3b", "optim=lora")
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**cfg.model.architecture)
    sizes = WanVideoDecoder(AutoencoderKLWan()), (16, 21, 60, 104), 512
    flops = unit_flops(transformer, *sizes, cfg.optim.lora, gradient_checkpointing=checkpointing)
    base, projections = by_hand(transformer.config)
    adapters = 30 * 2 * 2 * 16 * 1536 * (6 * 21 * 30 * 52 + 2 * 512)
    forward, backward = base + adapters, 2 * (base + adapters) - projections
    counts = Counts(rollout_velocities=384 * 20, trained_states=384, videos=384)
    again = forward if checkpointing else 0
    by_count = 1e-15 * (2 * 384 * 21 * forward + 2 * 384 * (backward + again))
    assert counts.pflop(2, flops, kl=False) == pytest.approx(by_count, rel=3e-4)
    assert counts.pflop(2, flops, kl=False) == pytest.approx(5163.5 if checkpointing else 4945.7, abs=0.1)
    assert counts.pflop_all(2, flops, kl=False) - counts.pflop(2, flops, kl=False) == pytest.approx(105.7, abs=0.1)


@pytest.mark.parametrize(("recipe", "steps", "last"), [("wan21_1p3b", 20, 9), ("wan21_14b", 12, 5)])
def test_the_recipes_compose_their_steps_and_candidates(recipe, steps, last):
    """As a user composes them. Flash and Fast1 draw from the same first half of the steps."""
    flash, window = (composed_outside([f"recipe={recipe}", f"ablations={name}"]) for name in ("none", "sliding_window"))
    assert len(instantiate(flash.schedule)) == steps
    assert (flash.method.plan.first_step, flash.method.plan.last_step) == (0, last)
    assert (window.method.plan.first_step, window.method.plan.last_step) == (0, last)
    instantiate(flash.method).plan.candidates(steps)
