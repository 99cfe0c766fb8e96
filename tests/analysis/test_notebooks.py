"""The notebooks hold calls only and run from top to bottom on a study, on the committed ones too."""

import ast
import json
import os
from pathlib import Path

import pytest
from test_study import write_study

import analysis
from analysis.archive import pack

HERE = Path(analysis.__file__).parent
NOTEBOOKS = sorted((HERE / "notebooks").glob("*.ipynb"))
FIXTURES = sorted((HERE / "fixtures").glob("*.tar.xz"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = write_study(tmp_path_factory.mktemp("studies") / "small", seeds=range(2))
    pack([path], path.with_suffix(".tar.xz"))
    return path.with_suffix(".tar.xz")


def cells(notebook: Path) -> list[str]:
    return [
        "".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_all_four_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["ablations", "gpu_days_vs_reward", "mechanism", "paper_tables"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_calls_and_no_definitions_and_no_outputs(notebook):
    kinds = {type(node) for source in cells(notebook) for node in ast.walk(ast.parse(source))}
    assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While}
    assert all(not cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("fixture", ["synthetic", *FIXTURES], ids=lambda item: getattr(item, "stem", item))
def test_a_notebook_runs_from_top_to_bottom(notebook, fixture, study, monkeypatch, capsys):
    monkeypatch.setenv("STUDY", str(study if fixture == "synthetic" else fixture))
    monkeypatch.chdir(notebook.parent)
    namespace = {"__name__": "notebook"}
    for source in cells(notebook):
        exec(compile(source, notebook.name, "exec"), namespace)
    assert len(namespace["given"].summaries) > 0


def test_a_notebook_runs_in_a_real_kernel(study):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(HERE / "notebooks" / "paper_tables.ipynb", as_version=4)
    env = os.environ | {"STUDY": str(study), "PYTHONPATH": str(HERE.parent)}
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(HERE)}}).execute(env=env)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("Flow-GRPO-Fast1" in output["data"].get("text/html", "") for output in shown)
    assert any("Flash-GRPO" in output["data"].get("text/html", "") for output in shown)
