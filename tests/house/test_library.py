"""What a program that uses the suite as a library finds."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flash_grpo
from flash_grpo.records.files import read_records

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_is_there_and_the_version_is_the_project_s():
    assert all(getattr(flash_grpo, name) is not None for name in flash_grpo.__all__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert flash_grpo.__version__ == project["version"]
    assert (ROOT / "flash_grpo/py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flash_grpo.nothing


def test_importing_the_package_imports_nothing_heavy():
    check = "import sys, flash_grpo; assert not {'torch', 'hydra', 'diffusers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_the_method_of_the_paper_in_five_lines():
    """The mask and the weight of Flash-GRPO, without a run, a model or a file."""
    schedule = flash_grpo.flow_schedule(20)
    layout = flash_grpo.Layout(num_prompts=2, group_size=4)
    batch = layout.batch(iteration=1, text_P=["a", "b"], rank=0)
    mask_BT = flash_grpo.OneStep(first_step=0, last_step=9)(batch, len(schedule), seed=0)
    assert mask_BT.sum(1).tolist() == [1] * 8
    assert [row.unique(dim=0).shape[0] for row in mask_BT.reshape(2, 4, 20)] == [1, 1]
    assert flash_grpo.inverse_lambda(schedule)[:2].tolist() == pytest.approx([7.4770, 7.0414], abs=1e-3)


def _readme(title: str) -> tuple[str, list[str]]:
    """Return a section's Python and the arguments of its first `python train.py`."""
    text = (ROOT / "README.md").read_text().partition(f"### {title}")[2].partition("\n## ")[0]
    code = text.partition("```python\n")[2].partition("```")[0]
    return code, text.partition("un `python train.py ")[2].partition("`")[0].split()


def test_the_readmes_own_method_runs_as_it_says(tmp_path):
    code, command = _readme("Your own method in ten lines")
    (tmp_path / "mine.py").write_text(code)
    done = _trained(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert _trained_steps(tmp_path) == [3, 3]
    (tmp_path / "mine.py").write_text(code.replace("candidates", "check"))
    refused = _trained(tmp_path, *command)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "EarlySteps has no candidates(num_steps)" in refused.stderr


def test_the_readmes_own_method_runs_from_a_yaml_beside_the_others(tmp_path):
    code, _ = _readme("Your own method in ten lines")
    for folder in ("flash_grpo", "hydra_plugins", "ablations", "slurm", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "mine.py").write_text(code)
    yaml = (ROOT / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "ablations/early.yaml").write_text(yaml)
    done = _trained(tmp_path, "ablations=early", program=tmp_path / "train.py")
    assert done.returncode == 0, done.stderr
    assert _trained_steps(tmp_path) == [3, 3]
    (tmp_path / "ablations/early.yaml").write_text(yaml.replace("method: own", "method: full"))
    refused = _trained(tmp_path, "ablations=early", program=tmp_path / "train.py")
    assert "EarlySteps takes no skip_last; method=own begins without" in refused.stderr


@pytest.mark.parametrize("title", ["Your own reward in three lines", "Your own model"])
def test_the_readmes_own_reward_and_model_run_as_they_say(title, tmp_path):
    code, command = _readme(title)
    (tmp_path / "mine.py").write_text(code)
    done = _trained(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert _trained_steps(tmp_path) == [1, 1]
    rehearsed = _trained(tmp_path, "-m", *command, "seed=5", "run_name=rehearsed")
    assert rehearsed.returncode == 0, rehearsed.stderr


def test_the_readmes_own_target_runs_as_it_says(tmp_path):
    text = (ROOT / "README.md").read_text().partition("A target is a function and a statement")[2]
    (tmp_path / "mine.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    done = _trained(tmp_path, *text.partition("`python train.py ")[2].partition("`")[0].split())
    assert done.returncode == 0, done.stderr
    records = [record for record in read_records(tmp_path / "runs/default/early") if record["kind"] == "iteration"]
    assert len(records) == 2 and min(record["gradient_norm"] for record in records) > 0


def _trained_steps(folder: Path) -> list[int]:
    """Return how many steps each iteration of the run in `folder` trained."""
    records = [record for record in read_records(folder / "runs/default/early") if "steps" in record]
    return [sum(share > 0 for share in record["steps"]) for record in records]


def _trained(folder: Path, *arguments: str, program: Path = ROOT / "train.py") -> subprocess.CompletedProcess[str]:
    """Run train.py from `folder`, where Python finds modules too, for two small iterations."""
    few = ("budget.iterations=2", "evaluation.every=1", "rollout.layout.num_prompts=1", "run_name=early")
    command = [sys.executable, program, *few, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
