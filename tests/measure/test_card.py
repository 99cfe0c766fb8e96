"""Model cards: what they say is what the run's files say, and nothing of the machine is in them."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from flash_grpo.export import main
from flash_grpo.measure.card import write_card
from flash_grpo.records.files import read_manifest, read_records, write_manifest
from flash_grpo.run import loop
from flash_grpo.run.stored import gain

CAPTIONS = ("a red ball moving left", "a blue square moving up")


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    file = folder / "captions.txt"
    file.write_text("\n".join(CAPTIONS))
    prompts = ("prompts=file", f"prompts.train={file}", f"prompts.test={file}")
    cfg = config(*prompts, f"runs_root={folder}", "optim=lora")
    return loop.run(cfg, cfg.run_name)


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _parts(card: Path) -> tuple[dict, str]:
    _, metadata, body = card.read_text().split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_the_export_holds_weights_card_and_sheets_and_the_card_holds_the_records_numbers(finished, tmp_path, capsys):
    main([str(finished), "--card", "--output", str(tmp_path / "hub")])
    files = {str(path.relative_to(tmp_path / "hub")) for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    adapters = {"pytorch_lora_weights.safetensors", "comfyui/pytorch_lora_weights.safetensors"}
    assert files == {"README.md", *adapters, "samples/start.png", "samples/end.png"}
    assert f"hf upload USER/NAME {tmp_path / 'hub'}" in capsys.readouterr().out
    metadata, body = _parts(tmp_path / "hub/README.md")
    assert metadata["tags"] == ["grpo", "flash-grpo", "lora"]
    assert not {"license", "base_model"} & metadata.keys()  # neither is known of a folder
    first, *_, last = [record for record in read_records(finished) if record["kind"] == "evaluation"]
    assert gain(first["prompt_rewards"], last["prompt_rewards"]) in body
    manifest = read_manifest(finished)
    for value in (
        manifest.prompts_hash,
        manifest.config_hash,
        "OneStep",
        "ShapesReward",
        "captions.txt",
        "after iteration 2,",
    ):
        assert value in body, value
    assert str(finished.parent.parent) not in body
    assert "those of training" in body


def test_a_base_on_the_hub_is_named_with_its_revision_and_reward_servers_are_not_named(run_dir, tmp_path):
    manifest = read_manifest(run_dir)
    manifest.model = manifest.config["model"]["path"] = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    manifest.config["model"]["revision"] = "0fad780"
    manifest.config["reward"] |= {"urls": ["http://node7:8700"], "head": "/home/somebody/head.pth"}
    manifest.run_name = "a | `b`\n---\n<script>"
    write_manifest(run_dir, manifest)
    metadata, body = _parts(write_card(run_dir, manifest, tmp_path, 2))
    assert metadata["base_model"] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert 'from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", revision="0fad780")\npipe.load_lora_weights' in body
    assert "head.pth" in body
    assert not [word for word in ("node7", "somebody", "<script>", "\n---\n") if word in body]


def test_a_later_comparison_of_the_same_checkpoint_is_shown_with_its_interval(run_dir, tmp_path):
    paired = {"000002": {"mean": 0.25, "sem": 0.1, "n": 2, "parts": {"hpsv3": {"mean": 0.5, "sem": None}}}}
    (run_dir / "evaluation").mkdir()
    (run_dir / "evaluation/evaluation.json").write_text(json.dumps({"paired": paired}))
    _, body = _parts(write_card(run_dir, read_manifest(run_dir), tmp_path, 2))
    assert "| reward | +0.250 ± 0.196 | 2 |\n| hpsv3 | +0.500 | 2 |" in body
    _, earlier = _parts(write_card(run_dir, read_manifest(run_dir), tmp_path, 1))
    assert "hpsv3" not in earlier
    assert "after iteration 0 (the weights are those after iteration 1)" in earlier


def test_a_run_that_was_never_evaluated_gets_no_card(run_dir, capsys):
    (run_dir / "records.jsonl").write_text("")
    with pytest.raises(SystemExit) as ended:
        main([str(run_dir), "--card"])
    assert ended.value.code == 2
    assert "it holds no evaluation up to iteration 2" in capsys.readouterr().err
