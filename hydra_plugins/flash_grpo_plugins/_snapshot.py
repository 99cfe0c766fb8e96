"""The code of a sweep, copied into its study at submission: whatever starts later, or again, runs this copy."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PLUGINS = Path(__file__).parent
KEPT = ("flash_grpo", "hydra_plugins/flash_grpo_plugins")
NOT_CODE = shutil.ignore_patterns("__pycache__", ".git", ".venv")


def snapshot(folder: Path) -> Path:
    """A directory for PYTHONPATH, named by its content: submitting the same code twice keeps one copy."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    package = Path(importlib.util.find_spec("flash_grpo").origin).parent
    for source, name in zip((package, PLUGINS), KEPT, strict=True):
        shutil.copytree(source, aside / name, ignore=NOT_CODE)
    for source in _own_modules():
        if source.is_dir():
            shutil.copytree(source, aside / source.name, ignore=NOT_CODE)
        else:
            shutil.copy2(source, aside / source.name)
    final = folder / _digest(aside)
    if final.exists():
        shutil.rmtree(aside)
    else:
        _note_commit(package.parent, aside)
        aside.chmod(0o755)
        aside.rename(final)
    return final.absolute()


def _own_modules() -> list[Path]:
    """Files and folders of the user's modules that the sweep's rehearsal has imported: those beside train.py, in the
    working directory or on PYTHONPATH. What is installed is not copied."""
    places = [sys.path[0], os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    roots = {Path(place).absolute() for place in places if place and not place.endswith("-packages")}
    files = [
        Path(module.__file__).absolute()
        for name, module in list(sys.modules.items())
        if "." not in name and name not in ("__main__", "flash_grpo") and getattr(module, "__file__", None)
    ]
    modules = {file.parent if file.stem == "__init__" else file for file in files}
    return sorted(module for module in modules if module.parent in roots)


def _digest(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def _note_commit(checkout: Path, folder: Path) -> None:
    """Beside the copy: the commit it came from, and what differed from that."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True).stdout

    if not (checkout / "train.py").is_file() or not shutil.which("git"):
        return
    commit, difference = git("rev-parse", "--verify", "-q", "HEAD").strip(), git("diff", "--binary", "HEAD")
    dirty = bool(git("status", "--porcelain").strip())
    (folder / "git.json").write_text(json.dumps({"commit": commit or None, "dirty": dirty}) + "\n")
    (folder / "dirty.diff").write_text(difference)
