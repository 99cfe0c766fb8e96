"""Folders as people have them: each layout that the pipeline's own save_pretrained makes is taken, or refused in one line."""

import json
import shutil

import pytest
import torch
import wan_pipeline
from diffusers import WanPipeline

from flash_grpo.policies.source import Wanted, differences, pipeline_folder
from flash_grpo.policies.wan import WanPolicy

PLAIN = Wanted()


@pytest.fixture
def folder(wan_folder, tmp_path):
    """A copy of the small pipeline, to change."""
    return shutil.copytree(wan_folder, tmp_path / "pipeline")


def _changed(file, **values):
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


def _velocity(folder):
    policy = WanPolicy(
        path=str(folder), frames=5, height=32, width=32, guidance=1.0, max_text_tokens=12, device=torch.device("cpu")
    )
    x = torch.linspace(-1, 1, 16 * 2 * 4 * 4).reshape(1, 16, 2, 4, 4)
    return policy.velocity(x, torch.tensor([500]), policy.encode(wan_pipeline.SENTENCES[:1]))


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fp16"},
        {"max_shard_size": "100KB"},
        {"variant": "fp16", "max_shard_size": "100KB"},
        {"safe_serialization": False},
    ],
    ids=str,
)
def test_every_layout_of_save_pretrained_loads_to_the_same_model(wan_folder, tmp_path, options):
    WanPipeline.from_pretrained(wan_folder).save_pretrained(tmp_path, **options)
    torch.testing.assert_close(_velocity(tmp_path), _velocity(wan_folder), atol=1e-6, rtol=0)


def test_a_variant_beside_the_default_is_not_taken(folder):
    (folder / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"broken")
    assert pipeline_folder(str(folder), None, PLAIN) == folder


def _no_vae(folder):
    _changed(folder / "model_index.json", vae="gone")


def _image_to_video(folder):
    _changed(folder / "model_index.json", _class_name="WanImageToVideoPipeline")


def _broken_index(folder):
    (folder / "model_index.json").write_text('{"vae": ')


def _broken_weight_index(folder):
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text("[]")


def _more_layers(folder):
    _changed(folder / "transformer/config.json", num_layers=3)


def _fewer_layers(folder):
    _changed(folder / "transformer/config.json", num_layers=1)


def _wider(folder):
    _changed(folder / "transformer/config.json", ffn_dim=128)


def _other_vae(folder):
    _changed(folder / "vae/config.json", base_dim=16)


def _fewer_text_layers(folder):
    _changed(folder / "text_encoder/config.json", num_layers=1)


def _broken_config(folder):
    (folder / "transformer/config.json").write_text("{")


def _truncated(folder):
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _two_variants(folder):
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    shutil.copy(file, file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))


def _image_dim(folder):
    _changed(folder / "transformer/config.json", image_dim=1280)


def _image_channels(folder):
    _changed(folder / "transformer/config.json", in_channels=36)


REFUSED = {
    _no_vae: r"its model_index\.json names None as vae",
    _image_to_video: r"is that of a WanImageToVideoPipeline; supported is text-to-video by WanPipeline, without conditioning",
    _broken_index: r"pipeline/model_index\.json: cannot be read",
    _broken_weight_index: r"diffusion_pytorch_model\.safetensors\.index\.json: no index of weight files",
    _more_layers: r"transformer/config\.json does not fit .*: it describes blocks\.2\..*, which they lack \(\d+ tensors\)",
    _fewer_layers: r"transformer/config\.json does not fit .*: they hold blocks\.1\..*, which it does not describe",
    _wider: r"transformer/config\.json does not fit .*: blocks\.0\.ffn.* is \[.*\] in them, and by it \[",
    _other_vae: r"vae/config\.json does not fit",
    _fewer_text_layers: r"text_encoder/config\.json does not fit .*: they hold encoder\.block\.1",
    _broken_config: r"transformer/config\.json",
    _truncated: r"diffusion_pytorch_model\.safetensors: cannot be read as weights",
    _two_variants: r"transformer holds the variants bf16, fp16",
    _image_dim: r"transformer/config\.json is that of a model that takes images .*conditioning on images is not supported",
    _image_channels: r"transformer/config\.json is that of a model that takes images",
}


@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_a_folder_that_cannot_be_trained_is_refused_and_names_its_file(folder, damage):
    damage(folder)
    with pytest.raises(ValueError, match=REFUSED[damage]) as caught:
        pipeline_folder(str(folder), None, PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("write", "wanted", "message"),
    [
        (
            wan_pipeline.write_two_experts,
            PLAIN,
            r"two transformers, .*choose model=wan22_a14b, or set model\.boundary=0\.875",
        ),
        (
            wan_pipeline.write_two_experts,
            Wanted(boundary=0.875, split=True),
            r"model\.split=true: .* has two transformers",
        ),
        (wan_pipeline.write_token_timesteps, PLAIN, r"model\.expand_timesteps=false: .* has it true; .*model=wan22_5b"),
        (wan_pipeline.write, Wanted(boundary=0.875), r"model\.boundary=0\.875: .* has one transformer"),
        (wan_pipeline.write, Wanted(expand_timesteps=True), r"model\.expand_timesteps=true: .* has it false"),
    ],
)
def test_a_folder_of_another_family_is_refused(tmp_path, write, wanted, message):
    with pytest.raises(ValueError, match=message):
        pipeline_folder(str(write(tmp_path)), None, wanted)


def test_a_shift_or_a_boundary_that_differs_is_said_in_a_line_each(tmp_path):
    folder = wan_pipeline.write_two_experts(tmp_path)  # its scheduler has a shift of 3
    assert differences(folder, 0.875, {"schedule.shift": 3.0}) == []
    shifts = {"schedule.shift": 12.0, "evaluation.sampler.schedule.shift": 12.0}
    boundary, shift = differences(folder, 0.9, shifts)
    assert boundary.startswith("model.boundary=0.9, while ") and boundary.endswith("boundary_ratio=0.875")
    assert shift.startswith("schedule.shift=12.0, evaluation.sampler.schedule.shift=12.0, while ")
    assert shift.endswith("scheduler/scheduler_config.json has a shift of 3.0")
