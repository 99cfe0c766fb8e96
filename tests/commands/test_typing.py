"""What people type who have not read the code: each gets one line that names the key, or what was typed, and the way out."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flash_grpo import cli

ROOT = Path(__file__).resolve().parents[2]

# what was typed after `python train.py`, and what the line must say
MISTAKES = {
    # keys by their last part, or by the name that other trainers use
    "lr=1e-4": "did you mean optim.optimizer.lr?",
    "learning_rate=1e-4": "did you mean optim.optimizer.lr?",
    "optim.lr=1e-4": "did you mean optim.optimizer.lr?",
    "optimizer.lr=1e-4": "did you mean optim.optimizer.lr?",
    "optim.optimizer.learning_rate=1e-4": "did you mean optim.optimizer.lr?",
    "epochs=2": "did you mean training.epochs?",
    "training.epoch=2": "did you mean training.epochs?",
    "num_steps=10": "schedule.num_steps",
    "steps=10": "schedule.num_steps",
    "noise=flow": "did you mean schedule.noise?",
    "sde=flow": "did you mean schedule.noise?",
    "group_size=8": "did you mean rollout.layout.group_size?",
    "rollout.group_size=8": "did you mean rollout.layout.group_size?",
    "batch_size=8": "rollout.batch",
    "guidance_scale=4.5": "did you mean model.guidance",
    "num_frames=81": "did you mean model.frames?",
    "iterations=10": "did you mean budget.iterations?",
    "budget.iteration=10": "did you mean budget.iterations?",
    "kl=0.01": "did you mean method.kl_weight?",
    "clip_range=0.1": "did you mean method.ratio_clip?",
    "output_dir=x": "did you mean runs_root?",
    "name=test": "did you mean run_name?",
    "resume=true": "the same command continues a run",
    "gradient_accumulation_steps=4": "training.batch",
    "-m slurm=gpu8 partition=gpu": "did you mean hydra.launcher.partition?",
    "-m slurm=gpu8 slurm.partition=gpu": "hydra.launcher.partition",
    "-m slurm=gpu8 gpus=4": "did you mean hydra.launcher.gpus_per_node?",
    # groups and options
    "ablation=none": "did you mean ablations?",
    "-m sweep=demo": "did you mean sweeps?",
    "method=Flash": "allowed: flash,",
    "model=wan2.1": "wan21_1p3b",
    "reward=hpsv2": "hpsv3",
    "prompts.train=my.txt": "prompts=file prompts.train=VALUE",
    "optim.lora.rank=64": "optim=lora optim.lora.rank=VALUE",
    "-m hydra/launcher=submitit_slurm": "slurm=NAME",
    # a value for a section
    "budget=10": "as in budget.iterations=VALUE",
    "checkpoint=10": "as in checkpoint.every=VALUE",
    "method.plan=full": "as in method.plan.first_step=VALUE",
    "schedule=flow": "as in schedule.num_steps=VALUE",
    # dashes
    "--seed 3": "values are written seed=3, without dashes",
    "--seed=3": "values are written seed=3, without dashes",
    "--method flash": "values are written method=flash, without dashes",
    "--multi-run sweeps=demo": "did you mean --multirun?",
    "-M sweeps=demo": "did you mean -m?",
    "-h method": "--cfg job --package method",
    "--help optim": "--cfg job --package optim",
    "--cfg": "--cfg job",
    "help": "--help",
    # spaces, commas, quotes and other characters
    "seed = 3": "write seed=3, without spaces",
    "seed 3": "write seed=3, without spaces",
    "seed:3": "write seed=3",
    "-m seed=0, 1, 2": "written without spaces, seed=0,1,2",
    "-m seed=0 1 2": "written without spaces: seed=0,1,2",
    "-m a=x, y": "written without spaces, a=x,y",
    "model.negative_prompt=ugly, blurry": "in quotes, 'model.negative_prompt=\"ugly, blurry\"'",
    "model.negative_prompt=ugly,blurry": "quoted twice: 'model.negative_prompt=\"ugly,blurry\"'",
    "model.negative_prompt=~bad": "quote it twice: 'model.negative_prompt=\"~bad\"'",
    "model.negative_prompt=低质量，模糊": "quote it twice: 'model.negative_prompt=\"低质量，模糊\"'",
    "runs_root=~/runs": "as in runs_root=$HOME/runs",
    "-m 'seed=range(3'": "a bracket is not closed",
    '"seed=\'1"': "quote it twice: 'seed=\"1\"'",
    # several values
    "-m seed=0..3": "-m seed=range(0,4)",
    "-m seed=[0,1,2]": "-m seed=0,1,2",
    "seed=0,1": "add -m",
    # kinds of values
    "seed=three": "expected an integer, as in seed=0",
    "seed=1.5": "expected an integer",
    "detach=yes": "expected true or false",
    "threads=auto": "expected an integer, as in threads=1",
    "device=cuda:0": "auto, cpu, cuda",
    "optim.optimizer.lr=1e-4x": "expected a number",
    "evaluation.every=5": "at most 1",
    "study=": "must not be empty",
    "+foo=1": "nothing reads this key",
}


def line_of(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out(typed, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(typed)])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert MISTAKES[typed] in line_of(capsys)
    assert list(tmp_path.iterdir()) == []


PROGRAMS = {
    "flash_grpo.jobs": "required: study",
    "flash_grpo.jobs runs --cancle": "did you mean --cancel?",
    "flash_grpo.jobs nowhere": "no such directory",
    "flash_grpo.export": "required: run",
    "flash_grpo.export nowhere": "no run.json",
    "flash_grpo.export run --iteration last": "--iteration: invalid int value: 'last'",
    "flash_grpo.evaluate": "required: run",
    "flash_grpo.evaluate nowhere": "no run.json",
    "analysis.report": "required: study",
    "analysis.report nowhere": "no such study: nowhere",
    "analysis.report . --cost gpu": "gpu_days",
    "analysis.rates nowhere": "nowhere",
    "analysis.archive": "required: studies, archive",
    "analysis.archive nowhere": "required: archive",
}


@pytest.mark.parametrize("typed", PROGRAMS)
def test_other_programs_answer_in_one_line_too(typed, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    program, *arguments = typed.split()
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(program).main(arguments)
    assert PROGRAMS[typed] in line_of(capsys)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("bench", "bench:\n  batch: 1"),
        ("serve", "server:\n  host:"),
        ("mechanism", "measure:\n  quantities:"),
        ("diagnose", "diagnose:\n  iterations:"),
    ],
)
def test_each_program_has_a_help_of_its_own(program, said, monkeypatch, capsys):
    module = importlib.import_module(f"flash_grpo.{program}")
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    module.main()
    out = capsys.readouterr().out
    assert out.startswith(module.__doc__.split("\n")[0])
    assert said in out
    assert "sweeps=" not in out


def test_the_shell_completes_groups_options_and_keys(tmp_path):
    def completed(line: str) -> list[str]:
        env = os.environ | {"COMP_LINE": f"python train.py {line}", "PYTHONPATH": str(ROOT)}
        query = [sys.executable, str(ROOT / "train.py"), "--shell-completion", "query=bash"]
        return subprocess.run(query, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    assert "method=flash" in completed("method=")
    assert "optim.optimizer." in completed("optim.opt")


def test_the_version_is_the_suite_s(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--version"])
    cli.main()
    assert capsys.readouterr().out.startswith("flash_grpo 0.")
