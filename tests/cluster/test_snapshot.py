"""Test the copy of the code that a sweep's jobs run: which of the user's own modules it holds."""

import importlib
import json
import subprocess
import sys

import pytest

from flash_grpo.cluster.snapshot import snapshot


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make a user's directory, first on sys.path as that of a script is."""
    folder = tmp_path / "tree"
    files = {
        "mine.py": "import json\ndef method():\n    import mine_later\n    from mine_parts import thing\n",
        "mine_later.py": "",
        "mine_parts/thing.py": "",
        "mine_parts/notes.txt": "",
        "mine_unused.py": "",
        "json/__init__.py": "",  # has the name of a module that is imported from elsewhere
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "mine_parts/.#thing.py").symlink_to("editor@host.1")
    (folder / "mine_parts/gone.py").symlink_to("nowhere")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    importlib.import_module("mine")
    yield folder
    sys.modules.pop("mine")


def test_a_snapshot_holds_the_modules_that_are_imported_now_or_later_and_no_others(tree, tmp_path):
    copied = snapshot(tmp_path / "code")
    there = {path.name for path in copied.iterdir()}
    assert {"flash_grpo", "hydra_plugins", "mine.py", "mine_later.py", "mine_parts"} <= there
    assert not there & {"mine_unused.py", "json"}
    assert {path.name for path in (copied / "mine_parts").iterdir()} == {"thing.py", "notes.txt"}


def test_the_same_code_is_copied_once_and_other_code_beside_it(tree, tmp_path):
    first, again = (snapshot(tmp_path / "code") for _ in range(2))
    (tree / "mine_later.py").write_text("edited = True\n")
    other = snapshot(tmp_path / "code")
    assert first == again != other
    assert {path.name for path in (tmp_path / "code").iterdir()} == {first.name, other.name}
    assert (first / "mine_later.py").read_text() == ""


def test_the_commit_and_the_difference_from_it_lie_beside_the_copy(tmp_path):
    copied = snapshot(tmp_path / "code")
    root = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True
    ).stdout.strip()

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout

    assert json.loads((copied / "git.json").read_text())["commit"] == git("rev-parse", "HEAD").strip()
    assert (copied / "dirty.diff").read_text() == git("diff", "--binary", "HEAD")
