"""Copy the code of a sweep into its study at submission, so that whatever starts later, or again, runs this copy."""

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
SUITE = ("flash_grpo", "hydra_plugins.flash_grpo_plugins")
NOT_CODE = shutil.ignore_patterns("__pycache__", ".git", ".venv", ".#*")


def snapshot(folder: Path) -> Path:
    """Copy the suite and the user's own modules into a new directory in `folder`; return it, for PYTHONPATH.

    The directory is named by its content: submitting the same code twice keeps one copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    for name in SUITE:
        _copy(_suite_folder(name), aside / name.replace(".", "/"))
    for source in _own_modules():
        _copy(source, aside / source.name)
    _write_commit(_suite_folder("flash_grpo").parent, aside)
    final = folder / _digest(aside)
    if final.exists():
        shutil.rmtree(aside)
    else:
        aside.chmod(0o755)
        aside.rename(final)
    return final.absolute()


def _suite_folder(name: str) -> Path:
    folder = _find(name)
    assert folder, f"{name} is imported"
    return folder


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=NOT_CODE, ignore_dangling_symlinks=True)
    else:
        shutil.copy2(source, target)


def _own_modules() -> list[Path]:
    """Find the user's modules that the sweep's rehearsal has imported, and those that these import, also inside functions.

    A module is the user's if it lies beside train.py, in the working directory or on PYTHONPATH. Installed ones are left out.
    """
    places = [sys.path[0], os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    roots = {Path(place).absolute() for place in places if place and not place.endswith("-packages")}
    names, own = {name for name in sys.modules if "." not in name} - NOT_OWN, dict[str, Path]()
    while names:
        name = names.pop()
        path = None if name in own else _find(name)
        if path and path.parent in roots:
            own[name] = path
            names |= _imported_by(path) - NOT_OWN
    return sorted(own.values())


def _find(name: str) -> Path | None:
    """Return the file of a module or the folder of a package, also of one without __init__.py; None if it has neither."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module that was made in memory
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    path = folders[0] if folders else spec.origin if spec.has_location else None
    return Path(path).absolute() if path else None


def _imported_by(module: Path) -> set[str]:
    """Return the top-level names of all import statements in a module or package, also of those inside functions."""
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
    except (SyntaxError, OSError):  # a template; a link to a file that does not exist
        return []


def _digest(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def _write_commit(checkout: Path, folder: Path) -> None:
    """Write the commit that the copy came from, git.json, and its difference from that commit, dirty.diff."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=checkout, capture_output=True).stdout

    if not (checkout / "train.py").is_file() or not shutil.which("git"):
        return
    commit, difference = git("rev-parse", "--verify", "-q", "HEAD").decode().strip(), git("diff", "--binary", "HEAD")
    dirty = bool(git("status", "--porcelain").strip())
    (folder / "git.json").write_text(json.dumps({"commit": commit or None, "dirty": dirty}) + "\n")
    (folder / "dirty.diff").write_bytes(difference)
