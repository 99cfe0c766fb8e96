"""Adapters that travel: written in diffusers' layout and in Wan's own, read back from each, and begun from."""

import pytest
import torch
import wan_pipeline
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from flash_grpo.algorithm import keyed
from flash_grpo.policies.wan import WanPolicy

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
BLOCKS = [*ATTENTION, "ffn.net.0.proj", "ffn.net.2"]
AROUND = ["condition_embedder.time_proj", "time_embedder.linear_1", "time_embedder.linear_2", "proj_out"]
LORA = {"rank": 4, "alpha": 8, "targets": BLOCKS, "init": "gaussian", "seed": 0}
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def policy(wan_folder):
    """`policy(rank=2)`: the small pipeline with adapters of these settings."""

    def loaded(folder=None, **lora):
        size = {"frames": 5, "height": 32, "width": 32, "max_text_tokens": wan_pipeline.TEXT_TOKENS}
        options = {"boundary": 0.875} if folder else {}
        path = str(folder or wan_folder)
        return WanPolicy(path=path, guidance=1.0, device=torch.device("cpu"), lora=LORA | lora, **size, **options)

    return loaded


def _trained(policy):
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter.add_(0.1 * keyed.normal(parameter.shape, "trained", name))
    return policy


def _velocity(policy, base=False, timestep=900):
    x = keyed.normal(policy.latent_shape, "adapter")[None]
    inputs = x, torch.tensor([timestep]), policy.encode(wan_pipeline.SENTENCES[:1])
    return (policy.base_velocity if base else policy.velocity)(*inputs).detach()


@pytest.fixture
def exported(policy, tmp_path):
    """`exported(alpha=3)`: a trained policy and the folder of its adapters."""

    def written(**lora):
        trained = _trained(policy(**lora))
        trained.export(tmp_path / "export", trained.trainable())
        return trained, tmp_path / "export"

    return written


def _in_pipeline(wan_folder, folder, name, policy):
    pipeline = WanPipeline.from_pretrained(wan_folder)
    pipeline.load_lora_weights(folder, weight_name=name)
    x = keyed.normal(policy.latent_shape, "adapter")[None]
    with torch.no_grad():
        return pipeline.transformer(
            x, torch.tensor([900]), policy.encode(wan_pipeline.SENTENCES[:1]), return_dict=False
        )[0]


@pytest.mark.parametrize(
    "lora", [{}, {"alpha": 3}, {"targets": ATTENTION}, {"targets": [*BLOCKS, *AROUND], "alpha": 3}]
)
def test_both_layouts_give_wan_pipeline_the_same_velocity(exported, wan_folder, lora):
    trained, folder = exported(**lora)
    ours = _velocity(trained)
    for place in (folder, folder / "comfyui"):
        torch.testing.assert_close(_in_pipeline(wan_folder, place, FILE, trained), ours, atol=1e-5, rtol=1e-5)


def test_wan_s_own_layout_has_the_keys_that_comfyui_and_musubi_tuner_read(exported):
    """ComfyUI: `comfy/lora.py`, the model's own names behind diffusion_model. musubi-tuner: `convert_lora.py`."""
    _, folder = exported()
    layers = [f"{attention}.{matrix}" for attention in ("self_attn", "cross_attn") for matrix in "qkvo"] + [
        "ffn.0",
        "ffn.2",
    ]
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    expected = {f"diffusion_model.blocks.{b}.{layer}.{end}" for b in (0, 1) for layer in layers for end in ends}
    written = load_file(folder / "comfyui" / FILE)
    assert written.keys() == expected
    assert {float(value) for name, value in written.items() if name.endswith("alpha")} == {8.0}


def _musubi(folder):
    """As musubi-tuner's convert_from_diffusers renames them."""
    renamed = {}
    for name, value in load_file(folder / "comfyui" / FILE).items():
        key = name.removeprefix("diffusion_model.").replace(".", "_")
        for end in ("lora_down_weight", "lora_up_weight", "alpha"):
            if key.endswith(f"_{end}"):
                renamed[f"lora_unet_{key.removesuffix(f'_{end}')}.{end.replace('_weight', '.weight')}"] = value
    save_file(renamed, folder / "musubi.safetensors")
    return folder / "musubi.safetensors"


@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "musubi-tuner"])
def test_a_run_begins_from_adapters_of_each_layout_exactly(exported, policy, layout):
    trained, folder = exported()
    file = {"diffusers": folder / FILE, "comfyui": folder / "comfyui" / FILE}.get(layout) or _musubi(folder)
    begun = policy(init_from=str(file))
    for name, value in trained.trainable().items():
        assert torch.equal(begun.trainable()[name], value), name
    again = policy(init_from=str(file), alpha=3)  # another scale: the same function
    torch.testing.assert_close(_velocity(again), _velocity(trained), atol=1e-5, rtol=1e-5)


def test_the_base_of_the_kl_is_the_model_or_the_model_with_the_adapters(exported, policy):
    trained, folder = exported()
    at_first, plain = _velocity(trained), _velocity(policy())
    for kl_base, base in (("model", plain), ("init_from", at_first)):
        begun = policy(init_from=str(folder / FILE), kl_base=kl_base)
        begun.keep_base()
        torch.testing.assert_close(_velocity(begun, base=True), base, atol=1e-6, rtol=0)
        _trained(begun)
        torch.testing.assert_close(_velocity(begun, base=True), base, atol=1e-6, rtol=0)
        assert (_velocity(begun) - at_first).abs().max() > 1e-3


def test_a_base_between_forward_and_backward_leaves_the_gradient_as_it_is(exported, policy):
    _, folder = exported()
    gradients = []
    for with_base in (False, True):
        begun = policy(init_from=str(folder / FILE), kl_base="init_from")
        begun.keep_base()
        _trained(begun)
        x = keyed.normal(begun.latent_shape, "adapter")[None]
        inputs = x, torch.tensor([900]), begun.encode(wan_pipeline.SENTENCES[:1])
        velocity = begun.velocity(*inputs)
        if with_base:
            begun.base_velocity(*inputs)
        velocity.square().mean().backward()
        gradients.append({name: value.grad for name, value in begun.trainable().items()})
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_each_of_two_transformers_begins_from_a_file_of_its_own(policy, tmp_path):
    folder = wan_pipeline.write_two_experts(tmp_path / "pipeline")
    trained = _trained(policy(folder))
    trained.export(tmp_path, trained.trainable())
    files = {
        "transformer": str(tmp_path / FILE),
        "transformer_2": str(tmp_path / "comfyui/pytorch_lora_weights_2.safetensors"),
    }
    begun = policy(folder, init_from=files)
    assert all(torch.equal(value, begun.trainable()[name]) for name, value in trained.trainable().items())
    with pytest.raises(ValueError, match=r"two transformers; name a file for each"):
        policy(folder, init_from=files["transformer"])


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"init_from": "/nowhere.safetensors"}, "there is no such file"),
        ({"rank": 2}, r"its rank is \[4\]; set optim\.lora\.rank"),
        (
            {"targets": ATTENTION},
            r"blocks\.0\.ffn\.net\.0\.proj\.lora_A\.weight is what it has, and this run's adapters have not",
        ),
        (
            {"targets": [*BLOCKS, "proj_out"]},
            r"proj_out\.lora_A\.weight is what this run's adapters have, and it has not",
        ),
        ({"init_from": None, "kl_base": "init_from"}, r"kl_base=init_from: names no file"),
        ({"kl_base": "other"}, "allowed are model, init_from"),
        ({"init": "pissa"}, "allowed are gaussian, true"),
        ({"init_from": {"transformer": "x"}}, "give a file, or one for each of two transformers"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_in_one_line(exported, policy, lora, message):
    _, folder = exported()
    with pytest.raises(ValueError, match=message) as caught:
        policy(**{"init_from": str(folder / FILE), **lora})
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_refused(policy, tmp_path):
    save_file({"diffusion_model.blocks.0.self_attn.q.strange": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"optim\.lora\.init_from=.*x\.safetensors: no adapters of Wan"):
        policy(init_from=str(tmp_path / "x.safetensors"))
    (tmp_path / "y.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"y\.safetensors"):
        policy(init_from=str(tmp_path / "y.safetensors"))
