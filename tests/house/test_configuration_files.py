"""Every file that the command line composes a run from is sound."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate

from flash_grpo import cli
from flash_grpo.algorithm.schedule import NOISE_LEVELS

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "flash_grpo/conf"
OWN = {  # what the options `own` leave to the user
    "method": (
        "method.name=mine",
        "method.plan._target_=flash_grpo.algorithm.plans.FullTrajectory",
        "optim.optimizer.lr=1e-4",
    ),
    "reward": ("reward._target_=flash_grpo.rewards.brightness.brightness",),
    "model": ("model._target_=flash_grpo.policies.wan.WanPolicy",),
}
GROUP_FILES = sorted(
    [
        *(path for path in CONF.rglob("*.yaml") if path.parent != CONF),
        *(path for group in ("ablations", "sweeps", "slurm") for path in (ROOT / group).rglob("*.yaml")),
    ]
)
ABLATIONS = sorted((ROOT / "ablations").glob("*.yaml"))
SOURCES = r"paper|release|Flow-GRPO|MixGRPO|LongCat|ours|as (flash|full|window)"


def _option(path: Path) -> tuple[str, str]:
    root = CONF if path.is_relative_to(CONF) else ROOT
    return path.relative_to(root).parent.as_posix(), path.stem


def _group_files(*groups: str) -> pytest.MarkDecorator:
    chosen = [_option(path) for path in GROUP_FILES if not groups or _option(path)[0] in groups]
    return pytest.mark.parametrize(("group", "option"), chosen, ids=lambda part: part)


def _composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["run_name=x", *overrides], return_hydra_config=True)


@_group_files()
def test_every_yaml_composes_to_a_run_whose_parts_can_be_built(group, option):
    cfg = _composed(f"{group}={option}", *(OWN[group] if option == "own" else ()))
    schedule, method = instantiate(cfg.schedule), instantiate(cfg.method)
    method.plan.candidates(len(schedule))
    assert method.weigh(schedule).shape == (len(schedule),)
    assert method.advantage(torch.tensor([[0.0, 1.0]])).shape == (1, 2)
    assert len(instantiate(cfg.evaluation.sampler).schedule) >= 2
    assert instantiate(cfg.optim.optimizer, params=[torch.nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] > 0
    instantiate(cfg.budget)
    for part in (cfg.model, cfg.reward, cfg.prompts, cfg.hydra.launcher):
        assert callable(get_object(part._target_))


@_group_files("sweeps")
def test_every_point_of_a_sweep_names_keys_and_options_that_exist(group, option):
    cfg = _composed(f"{group}={option}")
    overrides = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    assert overrides
    assert cfg.study != "default"
    cli.check_overrides(["-m"], overrides)


@_group_files("ablations")
def test_an_ablation_has_a_name_of_its_own_and_a_learning_rate(group, option):
    cfg = _composed(f"{group}={option}")
    expected = {"none": "flash", "full_trajectory": "full", "sliding_window": "window"}.get(option, option)
    assert cfg.method.name == expected
    assert all(cfg.method.name in cfg.optim.lr_of[noise] for noise in NOISE_LEVELS)


@pytest.mark.parametrize("path", [path for path in GROUP_FILES if path.parent.name in ("ablations", "sweeps", "slurm")])
def test_a_file_that_users_edit_begins_with_its_purpose_and_a_command(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[0] == "# @package _global_"
    assert len(comments) > 1
    if path.stem != "none":
        assert any(re.match(r"#.*(python train\.py|make) ", line) for line in comments)


def test_every_preset_of_a_paper_is_listed_with_it():
    """In docs/pages/methods.md with the paper's number, and in README by its name."""
    page, readme = (ROOT / "docs/pages/methods.md").read_text(), (ROOT / "README.md").read_text()
    papers = {path.stem: re.search(r"arXiv ([0-9]{4}[.][0-9]{5})", path.read_text()) for path in ABLATIONS}
    found = {name: paper[1] for name, paper in papers.items() if paper}
    assert len(found) >= 12
    for name, paper in found.items():
        assert re.search(rf"`{name}`.*{re.escape(paper)}", page), name
        assert re.search(rf"`(ablations=)?{name}`", readme), name


@_group_files("method", "optim", "evaluation")
def test_every_hyper_parameter_cites_its_source(group, option):
    text = (CONF / group / f"{option}.yaml").read_text()
    assert [line for line in _hyper_parameters(text) if not re.search(SOURCES, line.partition("#")[2])] == []


def _hyper_parameters(text: str) -> list[str]:
    """The lines that set a value, each with its own comment or with that of the innermost key above that has one."""
    settings, above = [], []
    for line in text.splitlines():
        item = re.match(r"( *)([\w.]+):([^#]*)(#.*)?", line)
        if not item:
            continue
        depth, key, value, comment = len(item[1]), item[2], item[3].strip(), item[4] or ""
        above = [(at, source) for at, source in above if at < depth]
        if not value:
            above.append((depth, comment))
        elif key not in ("_target_", "_partial_", "name") and not value.startswith("${"):
            inherited = next((source for _, source in reversed(above) if source), "")
            settings.append(f"{key}: {value}  {comment or inherited}")
    return settings
