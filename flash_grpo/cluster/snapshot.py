"""The code of a sweep, copied into its study at submission: whatever starts later, or again, runs this copy."""

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NOT_OWN = {"__main__", "flash_grpo", "hydra_plugins"}
KEPT = ("flash_grpo", "hydra_plugins/flash_grpo_plugins")
NOT_CODE = shutil.ignore_patterns("__pycache__", ".git", ".venv", ".#*")


def snapshot(folder: Path) -> Path:
    """A directory for PYTHONPATH, named by its content: submitting the same code twice keeps one copy."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    package, plugins = _where("flash_grpo"), _where("hydra_plugins.flash_grpo_plugins")
    for source, name in zip((package, plugins), KEPT, strict=True):
        _copy(source, aside / name)
    for source in _own_modules():
        _copy(source, aside / source.name)
    _note_commit(package.parent, aside)
    final = folder / _digest(aside)
    if final.exists():
        shutil.rmtree(aside)
    else:
        aside.chmod(0o755)
        aside.rename(final)
    return final.absolute()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=NOT_CODE, ignore_dangling_symlinks=True)
    else:
        shutil.copy2(source, target)


def _own_modules() -> list[Path]:
    """Files and folders of the user's modules that the sweep's rehearsal has imported, and what these import, be it only
    when they are called: those beside train.py, in the working directory or on PYTHONPATH. What is installed is not copied.
    """
    places = [sys.path[0], os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    roots = {Path(place).absolute() for place in places if place and not place.endswith("-packages")}
    names, found = {name for name in sys.modules if "." not in name} - NOT_OWN, {}
    while names:
        name = names.pop()
        there = None if name in found else _where(name)
        if there and there.parent in roots:
            found[name] = there
            names |= _imported_by(there) - NOT_OWN
    return sorted(found.values())


def _where(name: str) -> Path | None:
    """The file of a module, the folder of a package, also of one without __init__.py."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: of a module that was made in memory
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    place = folders[0] if folders else spec.origin if spec.has_location else None
    return Path(place).absolute() if place else None


def _imported_by(module: Path) -> set[str]:
    """The top-level names of all import statements in a module or package, those in functions too."""
    names: set[str] = set()
    for file in [module] if module.is_file() else module.rglob("*.py"):
        for node in _nodes(file):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names


def _nodes(file: Path) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, OSError):  # a template, a link to nowhere
        return []


def _digest(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def _note_commit(checkout: Path, folder: Path) -> None:
    """Beside the copy: the commit it came from, and what differed from that."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=checkout, capture_output=True).stdout

    if not (checkout / "train.py").is_file() or not shutil.which("git"):
        return
    commit, difference = git("rev-parse", "--verify", "-q", "HEAD").decode().strip(), git("diff", "--binary", "HEAD")
    dirty = bool(git("status", "--porcelain").strip())
    (folder / "git.json").write_text(json.dumps({"commit": commit or None, "dirty": dirty}) + "\n")
    (folder / "dirty.diff").write_bytes(difference)
