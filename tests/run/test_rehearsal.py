"""What is tried of every point of a sweep before anything is queued."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flash_grpo.run.build import ConfigError
from flash_grpo.run.rehearsal import rehearse

ROOT = Path(__file__).resolve().parents[2]
REAL = {"table1_1p3b": 8, "table1_14b": 96, "fig4": 8, "fig5": 8, "ablation_1p3b": 8}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, wan_folder):
    """A small pipeline: its files are looked at, and the model is made on the meta device."""
    return shutil.copytree(wan_folder, tmp_path_factory.mktemp("rehearsal") / "pipeline")


@pytest.fixture
def real(config, pipeline, tmp_path):
    """`real("sweeps=fig4")`: a point of a sweep over real models, with prompts, without weights."""
    (tmp_path / "train.txt").write_text("".join(f"prompt {i}\n" for i in range(100)))
    (tmp_path / "test.txt").write_text("held out\n")

    def composed(*overrides: str):
        files = [f"prompts.train={tmp_path}/train.txt", f"prompts.test={tmp_path}/test.txt", f"model.path={pipeline}"]
        return config(*overrides, *files, "reward=brightness", "rollout.layout.num_prompts=48", "~model.revision")

    return composed


@pytest.mark.parametrize("name", ["tokenizer", "text_encoder", "transformer"])
def test_a_pipeline_that_was_fetched_in_part_is_refused_in_one_line(real, pipeline, tmp_path, name):
    (pipeline / name).rename(tmp_path / name)
    missing = name if name == "tokenizer" else rf"{name}/\*.safetensors"
    with pytest.raises(ConfigError, match=rf"model\.path=.*: {missing} is missing there; fetch all of it") as refusal:
        rehearse(real("sweeps=fig4"), 8)
    assert "\n" not in str(refusal.value)
    (tmp_path / name).rename(pipeline / name)


def test_a_shard_that_is_missing_is_named(real, pipeline):
    index = pipeline / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        '{"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "diffusion_pytorch_model-2.safetensors"}}'
    )
    with pytest.raises(ConfigError, match=r"transformer/diffusion_pytorch_model-2\.safetensors is missing"):
        rehearse(real("sweeps=fig4"), 8)
    index.unlink()


def test_a_config_that_does_not_fit_its_weights_is_refused(real, pipeline):
    """The model itself is made of the architecture in conf/model: a rehearsal reads no weights, only their headers."""
    file = pipeline / "transformer/config.json"
    before = file.read_text()
    for layers, message in (
        (3, r"it describes blocks\.2\..*, which they lack"),
        (1, r"they hold blocks\.1\..*, which it"),
    ):
        file.write_text(json.dumps({**json.loads(before), "num_layers": layers}))
        with pytest.raises(
            ConfigError, match=rf"transformer/config\.json does not fit the weights beside it: {message}"
        ) as e:
            rehearse(real("sweeps=fig4"), 8)
        assert "\n" not in str(e.value)
    file.write_text(before)


@pytest.mark.parametrize("sweep", REAL)
def test_every_point_of_the_real_sweeps_can_begin(real, sweep):
    for ablation in OmegaConf.load(ROOT / "sweeps" / f"{sweep}.yaml").hydra.sweeper.params.ablations.split(","):
        cfg = real(f"sweeps={sweep}", f"ablations={ablation}", "schedule.num_steps=12")
        rehearse(cfg, REAL[sweep])
        with pytest.raises(ConfigError, match="do not fill 7 ranks"):
            rehearse(cfg, 7)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("method.plan.last_step=90", "last_step=90"),
        ("budget.iterations=null", "set at least one"),
        ("checkpoint.every=0", "checkpoint.every=0"),
        ("optim.optimizer.lr=-1", "Invalid learning rate"),
        ("model.path=/nowhere", "model.path=/nowhere"),
        ("model.frames=8", "frames"),
        ("+model.depth=3", "model: flash_grpo.policies.wan.WanPolicy takes no depth"),
        ("+reward.colour=red", "reward: flash_grpo.tiny_world.reward.ShapesReward takes no colour"),
        (
            "reward._target_=flash_grpo.tiny_world.reward.Shape",
            "reward._target_=flash_grpo.tiny_world.reward.Shape: there is",
        ),
        ("reward=pickscore", "reward.scorer.path=yuvalkirstain/PickScore_v1: neither a folder nor"),
        ("reward=videoalign reward.path=. reward.base=.", "reward.instruction=None: not a file with DETAILED_PROMPT"),
        (
            "reward=hpsv3 reward.scorer.path=. reward.scorer.base=.",
            "reward.scorer.instruction: not given, and hpsv3 is",
        ),
        ("reward=pickscore reward.scorer.path=/nowhere", "reward.scorer.path=/nowhere: there is no such folder"),
    ],
)
def test_a_point_that_cannot_begin_is_refused_in_one_line(config, chosen, message):
    with pytest.raises(ConfigError) as caught:
        rehearse(config(*chosen.split()), 1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_of_another_configuration_is_refused(config, train, tmp_path):
    train("seed=1")
    again = config(f"runs_root={tmp_path}", "seed=1", "budget.iterations=9")
    rehearse(again, 1)
    with pytest.raises(ConfigError, match=r"holds a run of another configuration \(seed: 1 there, 2 asked for\)"):
        rehearse(config(f"runs_root={tmp_path}", "seed=2"), 1)
