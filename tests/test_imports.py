"""Who may import whom: the rules of the house, kept by reading the imports of every file."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("flash_grpo", "analysis", "hydra_plugins") for path in (ROOT / folder).rglob("*.py"))
WIRING = ("flash_grpo/cli.py", "flash_grpo/run.py", "flash_grpo/rehearsal.py", "hydra_plugins")
PAPER = ("types", "keyed", "schedule", "sde", "plans", "weighting", "advantage", "loss", "method")


def _imported(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports, anywhere in it; `from a import b` may mean a or a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = _package(path, node.level) if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def _package(path: Path, level: int) -> str:
    return ".".join(path.relative_to(ROOT).parts[:-level])


def _tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imported(path)}


def _importers(*tops: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in FILES if _tops(path) & set(tops)}


def _inside(paths: set[str], *allowed: str) -> bool:
    return all(any(path == one or path.startswith(f"{one}/") for one in allowed) for path in paths)


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_is_torch_numpy_and_the_standard_library(name):
    path = ROOT / "flash_grpo" / f"{name}.py"
    others = _tops(path) - {"torch", "numpy", "flash_grpo"} - sys.stdlib_module_names
    own = {module for module in _imported(path) if module.startswith("flash_grpo.")}
    allowed = {"flash_grpo", *(f"flash_grpo.{part}" for part in PAPER)}
    assert not others
    assert all(module in allowed or module.rpartition(".")[0] in allowed - {"flash_grpo"} for module in own)


def test_hydra_is_known_to_the_command_line_the_run_and_the_plugins_only():
    importers = _importers("hydra")
    assert "flash_grpo/cli.py" in importers
    assert _inside(importers, *WIRING)


def test_configurations_are_known_to_the_commands_only():
    commands = {str(path.relative_to(ROOT)) for path in FILES if "flash_grpo.cli" in _imported(path)}
    assert _inside(_importers("omegaconf"), *WIRING, *commands)


def test_submitit_is_known_to_the_launchers_only():
    assert _inside(_importers("submitit"), "flash_grpo/distributed.py", "hydra_plugins")


def test_model_libraries_are_known_to_policies_and_rewards_only():
    importers = _importers("diffusers", "transformers", "peft")
    assert "flash_grpo/policies/wan.py" in importers
    assert _inside(importers, "flash_grpo/policies", "flash_grpo/rewards")


@pytest.mark.parametrize("name", ["records", "identity", "ending"])
def test_what_is_read_without_torch_needs_nothing_but_the_standard_library(name):
    assert _tops(ROOT / f"flash_grpo/{name}.py") <= sys.stdlib_module_names


def test_analysis_knows_of_the_package_only_its_records_and_what_makes_a_run_another():
    for path in (ROOT / "analysis").rglob("*.py"):
        own = {name for name in _imported(path) if name.startswith("flash_grpo")} - {"flash_grpo"}
        assert "torch" not in _tops(path)
        assert all(name.startswith(("flash_grpo.records", "flash_grpo.identity")) for name in own), path


def test_the_command_line_imports_nothing_heavy_until_a_run_starts():
    tree = ast.parse((ROOT / "flash_grpo/cli.py").read_text())
    first = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    first |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in first - {"flash_grpo.identity"}} <= {
        "hydra",
        "omegaconf",
    } | sys.stdlib_module_names


def test_folders_of_configuration_hold_nothing_else():
    folders = [ROOT / "flash_grpo/conf", ROOT / "ablations", ROOT / "sweeps"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "__pycache__" not in path.parts} == {".yaml"}
