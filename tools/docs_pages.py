"""Make the pages of the documentation from the repository's own files: a hook of mkdocs, see mkdocs.yml.

README's sections become pages, with slurm/README.md and the other Markdown files; methods, presets and records come from the
configuration and the schema; the API from docstrings; notebooks are run on the committed study.
"""

import ast
import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import nbformat
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

from flash_grpo.records import billed, schema

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY_FILES = {
    "slurm.md": "slurm/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "log.md": "analysis/LOG.md",
}
PICTURE = re.compile(r"(?<=\]\()docs/([\w.]+)(?=\))")
ROOMS = (
    "algorithm",
    "policies",
    "rewards",
    "tiny_world",
    "scenes_world",
    "records",
    "training",
    "run",
    "measure",
    "cluster",
    "planning",
    "preflight",
    "analysis",
)
RECORDS = (schema.RunManifest, schema.IterationRecord, schema.EvalRecord, schema.FailureRecord, schema.Cost)
RECORDS += (schema.BestCheckpoint, schema.ProgramStart, billed.Bill, billed.BilledStart)
NOTEBOOKS = sorted((ROOT / "analysis/notebooks").glob("*.ipynb"))
Page = tuple[str, str]  # address, Markdown


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the navigation: it follows README's sections, the rooms and the notebooks that there are."""
    sections = [address for address, _ in _readme()]
    api = [{"Commands": "api/commands.md"}, *({room: f"api/{room}.md"} for room in ROOMS)]
    config.nav = [
        {"Start": sections},
        {"Reference": ["before-a-run.md", "methods.md", "records.md", "configuration.md", {"API": api}]},
        {"Slurm": ["slurm.md"]},
        {"Notebooks": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]},
        {"Project": ["contributing.md", "changelog.md", "security.md", "log.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add all pages and pictures to those of docs/pages."""
    for address, text in _pages():
        if (there := files.get_file_from_path(address)) is not None:  # methods.md: formulas first, then the tables
            text = Path(there.abs_src_path).read_text() + text
            files.remove(there)
        files.append(File.generated(config, address, content=text))
    for picture in sorted((ROOT / "docs").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    for notebook in NOTEBOOKS:
        for address, content in _notebook(notebook).items():
            files.append(File.generated(config, f"notebooks/{address}", content=content))
    return files


def _pages() -> Iterator[Page]:
    yield from _readme()
    for address, source in REPOSITORY_FILES.items():
        yield address, (ROOT / source).read_text()
    yield "methods.md", _methods()
    yield "records.md", "\n\n".join(["# Records", *map(_record, RECORDS)])
    yield "configuration.md", _configuration()
    commands = [path.stem for path in sorted((ROOT / "flash_grpo").glob("*.py")) if path.stem != "__init__"]
    yield "api/commands.md", _api("Commands, and what they share", [f"flash_grpo.{name}" for name in commands])
    for room in ROOMS:
        folder = ROOT / (room if room == "analysis" else f"flash_grpo/{room}")
        modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(folder.glob("*.py"))]
        yield f"api/{room}.md", _api(room, [name for name in modules if _documented(name)])


def _readme() -> list[Page]:
    """Return README's beginning with its first section, and each further section, as pages."""
    text = PICTURE.sub(r"pictures/\1", (ROOT / "README.md").read_text())
    first, second, *others = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    pages = [("index.md", first + second)]
    for section in others:
        title = section.partition("\n")[0].removeprefix("## ")
        address = re.sub(r"\W+", "-", title.lower()).strip("-") + ".md"
        pages.append((address, re.sub(r"^#(?=#+ )", "", section, flags=re.MULTILINE)))
    return pages


def _methods() -> str:
    """Return the tables of methods and ablations, and the presets verbatim: each value has its source beside it."""
    lines = ["## The methods\n", "| | plan | weight | target |", "|---|---|---|---|"]
    for path in sorted((ROOT / "flash_grpo/conf/method").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        parts = " | ".join(_call(content[part]) for part in ("plan", "weigh", "target"))
        lines.append(f"| `method={path.stem}` | {parts} |")
    lines += ["\n| | what it changes |", "|---|---|"]
    for path in sorted((ROOT / "ablations").glob("*.yaml")):
        content = yaml.safe_load(path.read_text()) or {}
        chosen = [f"`method={item['override /method']}`" for item in content.get("defaults", [])]
        changes = [*chosen, _call(content.get("method", {})) or ("" if chosen else "nothing")]
        lines.append(f"| `ablations={path.stem}` | {', '.join(filter(None, changes))} |")
    folders = {"Methods, with sources": "flash_grpo/conf/method", "Recipes": "flash_grpo/conf/recipe"}
    return "\n".join(lines) + "".join(f"\n\n## {title}\n{_verbatim(folder)}" for title, folder in folders.items())


def _call(section: dict) -> str:
    """Return a section of a configuration in a line: its target's last name, then its values."""
    values = [f"{key}: {_shown(value)}" for key, value in section.items() if key not in ("_target_", "_partial_")]
    target = section.get("_target_", "").rpartition(".")[2]
    return ", ".join([f"`{target}`"] * bool(target) + values)


def _shown(value: object) -> object:
    return (_call(value) if "_target_" in value else f"{{{_call(value)}}}") if isinstance(value, dict) else value


def _configuration() -> str:
    folders = ("model", "reward", "optim", "evaluation", "prompts")
    parts = [f"## {folder}\n{_verbatim(f'flash_grpo/conf/{folder}')}" for folder in folders]
    parts += [f"## {folder}\n{_verbatim(folder)}" for folder in ("sweeps", "slurm")]
    main = f"# Configuration\n\n```yaml\n{(ROOT / 'flash_grpo/conf/config.yaml').read_text()}```\n"
    return "\n\n".join([main, *parts])


def _verbatim(folder: str) -> str:
    files = sorted((ROOT / folder).glob("*.yaml"))
    return "".join(f"\n### `{path.stem}`\n\n```yaml\n{path.read_text()}```\n" for path in files)


def _record(record: type) -> str:
    """Return a section with the type and the formula of each field, as the schema gives them. Refuse one without."""
    names = [field.name for field in dataclasses.fields(record)]
    documentation = " ".join((record.__doc__ or "").split())
    anyone = f"(?:{'|'.join(sorted(names, key=len, reverse=True))})"
    head, *described = re.split(rf"(?:^|(?<=[.;)] ))({anyone}(?:, {anyone})*): ", documentation)
    texts = _texts_below_fields(record)
    for several, text in zip(described[::2], described[1::2], strict=True):
        texts |= dict.fromkeys(several.split(", "), text.strip().rstrip(";."))
    lines = [f"## {record.__name__}\n\n{head}\n", "| field | type | |", "|---|---|---|"]
    for field in dataclasses.fields(record):
        text = texts.get(field.name, f"`{field.default}`" if field.name == "kind" else "")
        if not text and f"`{field.name}`" not in head:
            raise PluginError(f"{record.__module__}: {record.__name__}.{field.name} has no description")
        lines.append(f"| `{field.name}` | `{_type(field.type)}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _type(annotation: object) -> str:
    words = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"[\w.]+\.(?=\w)", "", words).replace(" | ", " or ")


def _texts_below_fields(record: type) -> dict[str, str]:
    """Return the docstrings that stand below fields, in one line each."""
    defined = ast.parse(inspect.getsource(record)).body[0]
    pairs = pairwise(defined.body if isinstance(defined, ast.ClassDef) else [])
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _api(title: str, modules: list[str]) -> str:
    return f"# {title}\n\n" + "\n\n".join(f"::: {name}" for name in modules)


def _documented(module: str) -> bool:
    return not module.endswith("__init__") and bool(
        ast.get_docstring(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()))
    )


def _notebook(path: Path) -> dict[str, str | bytes]:
    """Run a notebook on the study that it names; return its page and its pictures by their addresses."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # of its kernel
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
    return {f"{path.stem}.md": text, **resources["outputs"]}
