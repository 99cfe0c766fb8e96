"""What an installation holds: the wheel, the groups that users edit, the pins."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("ablations", "sweeps", "slurm")
PROFILES = sorted((ROOT / "slurm").glob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def _train(python_path: Path, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-c", "from flash_grpo.cli import main; main()", *arguments]
    environment = {"PYTHONPATH": str(python_path)}
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_wheel_holds_every_configuration_file(wheel):
    conf = {path.relative_to(ROOT / "flash_grpo/conf") for path in (ROOT / "flash_grpo/conf").rglob("*.yaml")}
    edited = {path.relative_to(ROOT) for group in GROUPS for path in (ROOT / group).rglob("*.yaml")}
    missing = {f"flash_grpo/conf/{path}" for path in conf | edited} - set(wheel.namelist())
    assert edited
    assert not missing


def test_the_wheel_holds_the_packages_and_the_small_worlds_checkpoints(wheel):
    names = set(wheel.namelist())
    wanted = {"flash_grpo/cli.py", "analysis/report.py", "hydra_plugins/flash_grpo_plugins/local.py"}
    wanted |= {"flash_grpo/records/prices.toml"}
    assert wanted <= names
    for world in ("tiny_world", "scenes_world"):
        assert f"flash_grpo/{world}/checkpoint/transformer/diffusion_pytorch_model.safetensors" in names
    assert "hydra_plugins/__init__.py" not in names  # it would hide the plugins of other packages


def test_an_installed_wheel_finds_its_groups_from_any_directory(wheel, tmp_path):
    site = tmp_path / "site"
    wheel.extractall(site)
    (tmp_path / "elsewhere").mkdir()
    config = _train(site, "sweeps=demo", "slurm=local", "--cfg", "hydra", cwd=tmp_path / "elsewhere")
    assert "hydra_plugins.flash_grpo_plugins.local.BoundedLocalLauncher" in config
    assert str(ROOT) not in config


def test_train_py_works_from_any_directory_and_shows_groups_only(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    help_text = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    groups = dict(re.findall(r"^(\w+): (\w.*)$", help_text.split("Groups")[1].split("Values")[0], re.MULTILINE))
    inside = {
        path.name for path in (ROOT / "flash_grpo/conf").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert set(groups) == inside | set(GROUPS)
    assert groups["slurm"].split(", ") == [path.stem for path in PROFILES]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_slurm_profile_touches_only_hydra(profile):
    assert set(yaml.safe_load(profile.read_text())) <= {"defaults", "hydra"}


def test_every_dependency_is_pinned_without_a_local_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {_name(item) for item in [*project["dependencies"], *extras["dev"], *extras["docs"]]}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert not wanted - {_name(line) for line in lines}


def test_the_lock_of_uv_holds_the_same_versions():
    lock = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    locked = {(package["name"], package["version"]) for package in lock}  # several for several versions of Python
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    assert not {(_name(name), version) for name, version in pins} - locked
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["version"]) in locked


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>~ ]", requirement)[0]).lower()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("flash_grpo.rewards.serve", "flash_grpo.serve"),
        ("flash_grpo.policies.pretrain_tiny", "flash_grpo.tiny_world.pretrain"),
    ],
)
def test_a_command_that_has_moved_says_where_to(old, new):
    done = subprocess.run([sys.executable, "-m", old], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: python -m {old} is now python -m {new}\n")
