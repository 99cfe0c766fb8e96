"""What a program that uses the suite as a library finds."""

import os
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


def test_the_readmes_own_method_runs_as_it_says(tmp_path):
    text = (ROOT / "README.md").read_text().partition("### Your own method in ten lines")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    command = text.partition("run `python train.py ")[2].partition("`")[0].split()
    (tmp_path / "mine.py").write_text(code)
    done = _trained(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    steps = [record["steps"] for record in read_records(tmp_path / "runs/default/early") if "steps" in record]
    assert [sum(share > 0 for share in step_T) for step_T in steps] == [3, 3]
    (tmp_path / "mine.py").write_text(code.replace("candidates", "check"))
    refused = _trained(tmp_path, *command)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "EarlySteps has no candidates(num_steps)" in refused.stderr


def test_the_readmes_own_target_runs_as_it_says(tmp_path):
    text = (ROOT / "README.md").read_text().partition("A target is a function and a statement")[2]
    (tmp_path / "mine.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    done = _trained(tmp_path, *text.partition("`python train.py ")[2].partition("`")[0].split())
    assert done.returncode == 0, done.stderr
    records = [record for record in read_records(tmp_path / "runs/default/early") if record["kind"] == "iteration"]
    assert len(records) == 2 and min(record["gradient_norm"] for record in records) > 0


def _trained(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run train.py from `folder`, where Python finds modules too, for two small iterations."""
    few = ("budget.iterations=2", "evaluation.every=1", "rollout.layout.num_prompts=1", "run_name=early")
    command = [sys.executable, ROOT / "train.py", *arguments, *few]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
