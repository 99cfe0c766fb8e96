"""Who may import whom: the rules of the house, kept by reading the imports of every file."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("flash_grpo", "analysis", "hydra_plugins") for path in (ROOT / folder).rglob("*.py"))

ROOMS = {  # what each may import of the others; itself it always may
    "records": set(),
    "algorithm": set(),
    "policies": {"algorithm", "hub"},
    "rewards": {"algorithm", "hub"},
    "tiny_world": {"algorithm", "arguments", "hub"},
    "scenes_world": {"algorithm", "arguments", "tiny_world"},
    "training": {"algorithm", "records"},
    "run": {"algorithm", "hints", "records", "training", "hub", "policies.source"},
    "measure": {"algorithm", "records", "training", "run", "planning"},
    "cluster": {"records", "process_exit"},
    "planning": {"algorithm", "records", "run", "cluster", "policies.settings", "policies.source"},
    "preflight": {"algorithm", "records", "training", "run", "measure", "planning", "cluster"},
    "tracking": {"records"},
    "analysis": {"arguments", "records"},
    "hydra_plugins": {"cluster", "records", "run"},
}
LIBRARIES = {  # besides the standard library; a file at the top of flash_grpo may use any
    "records": set(),
    "algorithm": {"torch", "numpy"},
    "training": {"torch", "numpy", "accelerate"},
    "cluster": {"submitit", "hydra", "omegaconf", "psutil", "rich"},
    "tracking": {"PIL", "tensorboard", "wandb", "trackio", "mlflow", "sqlalchemy"},
    "run": {"torch", "hydra", "omegaconf", "tqdm", "PIL"},
    "planning": {"torch", "hydra", "omegaconf", "rich"},
    "measure": {"torch", "hydra", "omegaconf", "tqdm", "imageio", "huggingface_hub"},
    "preflight": {"torch", "omegaconf"},
}
SHARED = {
    "arguments",
    "hints",
    "hub",
    "overrides",
    "process_exit",
    "recompose",
}  # files at the top that are not commands


def _modules() -> dict[str, Path]:
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def _imported(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports, anywhere in it; `from a import b` may mean a or a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports of the package are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _own(path: Path) -> set[str]:
    """The modules of this repository that a file imports."""
    modules = _modules()
    imported = set()
    for name in _imported(path):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        imported |= {name} - {""}
    return imported


def _tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imported(path)}


def _room(module: str) -> str:
    """algorithm of flash_grpo.algorithm.sde, jobs of flash_grpo.jobs, analysis of analysis.report."""
    parts = module.split(".")
    return parts[1] if parts[0] == "flash_grpo" and len(parts) > 1 else parts[0]


def _files(room: str) -> list[Path]:
    return [path for module, path in _modules().items() if _room(module) == room]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_that_it_may(room):
    assert _files(room)
    for path in _files(room):
        others = {module.removeprefix("flash_grpo.") for module in _own(path) if _room(module) != room} - {"flash_grpo"}
        forbidden = {name for name in others if name not in ROOMS[room] and name.split(".")[0] not in ROOMS[room]}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


@pytest.mark.parametrize("room", LIBRARIES)
def test_a_room_uses_only_its_libraries(room):
    for path in _files(room):
        others = _tops(path) - sys.stdlib_module_names - {"flash_grpo", "analysis", "hydra_plugins"}
        assert others <= LIBRARIES[room], path


def test_no_room_imports_a_command():
    commands = {module for module, path in _modules().items() if path.parent.name == "flash_grpo"}
    commands -= {"flash_grpo", *(f"flash_grpo.{name}" for name in SHARED)}
    assert "flash_grpo.jobs" in commands
    for module, path in _modules().items():
        if module not in commands:
            assert not _own(path) & commands, path


def test_there_is_no_circle():
    graph = {module: _own(path) - {module, "flash_grpo"} for module, path in _modules().items()}
    while leaves := {module for module, imported in graph.items() if not imported & graph.keys()}:
        graph = {module: imported for module, imported in graph.items() if module not in leaves}
    assert not graph, f"these import each other: {sorted(graph)}"


def test_real_models_know_nothing_of_the_small_worlds():
    for room in ("algorithm", "policies", "rewards", "training", "run", "cluster", "planning", "preflight"):
        for path in _files(room):
            assert not any(_room(module) in ("tiny_world", "scenes_world") for module in _own(path)), path


def test_model_libraries_are_known_to_policies_rewards_and_the_small_worlds_only():
    for module, path in _modules().items():
        if _tops(path) & {"diffusers", "transformers", "peft"}:
            assert _room(module) in ("policies", "rewards", "tiny_world", "scenes_world"), path


def test_a_tracker_is_known_to_its_own_file_only():
    trackers = {"tensorboard", "wandb", "trackio", "mlflow"}
    known = {module: _tops(path) & trackers for module, path in _modules().items() if _tops(path) & trackers}
    assert known == {f"flash_grpo.tracking.{tracker}": {tracker} for tracker in trackers}


def test_only_one_file_instantiates_what_a_configuration_names():
    callers = {module for module, path in _modules().items() if "hydra.utils.instantiate" in _imported(path)}
    assert callers == {"flash_grpo.run.making"}


LIGHT = ("cli", "overrides", "run/compose", "run/settings", "algorithm/ranges")
LIGHT += ("arguments", "hints", "records/checked", "records/identity", "records/slurm_job")


@pytest.mark.parametrize("name", LIGHT)
def test_the_command_line_imports_nothing_heavy_until_a_run_starts(name):
    tree = ast.parse((ROOT / f"flash_grpo/{name}.py").read_text())
    first = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    first |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    light = {f"flash_grpo.{light.replace('/', '.')}" for light in LIGHT} | {"flash_grpo.algorithm"}
    assert {name.split(".")[0] for name in first - light} <= {"hydra", "omegaconf"} | sys.stdlib_module_names


@pytest.mark.parametrize("room", ["hydra_plugins", "cluster", "records"])
def test_rooms_that_every_start_of_hydra_imports_need_no_torch(room):
    for path in _files(room):
        assert not _tops(path) & {"torch", "diffusers", "numpy"}, path


def test_folders_of_configuration_hold_nothing_else():
    folders = [ROOT / "flash_grpo/conf", ROOT / "ablations", ROOT / "sweeps"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "__pycache__" not in path.parts} == {".yaml"}


def test_nothing_is_unpickled_or_executed_from_a_file():
    unpicklers = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    calls = [
        (path, node) for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    named = [
        (path, ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords})
        for path, call in calls
    ]
    loads = [words for _, name, words in named if name == "torch.load"]
    assert len(loads) >= 3 and all(words.get("weights_only") == "True" for words in loads)
    assert not [path for path in FILES if _tops(path) & unpicklers]
    for path, name, words in named:
        assert name.split(".")[-1] not in ("read_pickle", "eval_str", "unsafe_load"), path
        assert name not in ("eval", "exec", "compile") and "allow_pickle" not in words, path
        if name.startswith("Auto") and name.endswith("from_pretrained"):
            assert words.get("trust_remote_code") == "False", path
    unpickled = [path.name for path, name, _ in named if name.endswith("DelayedSubmission.load")]
    assert unpickled == ["node.py"]  # what cluster.ownership has checked
