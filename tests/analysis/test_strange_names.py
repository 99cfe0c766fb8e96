"""Names that are LaTeX, Markdown, HTML, controls, or endless: the report is written, soon, and holds them as text."""

import csv
import html
import io
import json
import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_artefacts import measurements
from test_report import in_browser
from test_study import write_run

from analysis import plain, render, report
from analysis.mechanism import load_mechanism
from analysis.statistics import Estimate
from analysis.study import load_study

STRANGE = [
    *(r"$\frac$", r"\input{/etc/passwd}", r"1.0 [\input{x}]", r"1 (\write18{x})", "^_^ ~#%&", "λ×≥–−"),
    *("<script>alert(1)</script>", "&lt;", '"', "a | b", "[x](http://y)", "`x`", "=cmd()", "%s {0} {x!r}"),
    *("", " ", "a\nb", "a b", "\x1b[31mred\x1b[0m", "\u202eesrever", "\ud800", "\0", "猫", "_hidden"),
    *("x" * 5000, "a" * 300 + " b=" + "1." * 200, "flash", "flash x=1.2.3", "k=--1e5", "../../etc"),
]
names = st.sampled_from(STRANGE) | st.text(st.characters(), max_size=300) | st.text(r"\{}$^_~&%#|`<>[]*", max_size=20)

readable = names.filter(lambda name: "\ud800" not in name)  # half a surrogate pair: the file is refused as damaged


def _strange_study(folder: Path, method: str, other: str, part: str, text: str) -> Path:
    """A study of three runs whose run.json and records hold these names wherever a name may stand."""
    for index, (name, lr) in enumerate(((method, text), (method, "1e-4"), (other, "1e-4"))):
        run_dir = write_run(folder / f"run{index}", method="flash", seed=index % 2, iterations=4, every=2, part=part)
        manifest = json.loads((run_dir / "run.json").read_text())
        manifest |= {"method": name, "model": text, "status": "failed" if index == 2 else "completed", "reason": text}
        manifest["git"]["commit"], manifest["hardware"]["device"] = text, text
        manifest["config"] |= {"optim": {"lr": lr}, "method": {"name": name}}
        (run_dir / "run.json").write_text(json.dumps(manifest))
    return folder


def _made(study: Path) -> Path:
    began = time.monotonic()
    assert report.main([str(study)]) == 0
    assert time.monotonic() - began < 60
    output = study / "report"
    files = {path.suffix for path in output.iterdir()}
    assert files == {".html", ".png", ".pdf", ".md", ".csv", ".tex"}
    assert all(path.stat().st_size < 4e6 for path in output.iterdir())
    return output


def _no_raw_latex(text: str) -> None:
    """Assert that a table's body has no LaTeX but what `render` writes."""
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    own = r"\\(textbackslash|textasciicircum|textasciitilde)\{\}|\\[&%_#{}$]|\$(\\lambda|\\times|\\ge|-|[<>|])\$"
    estimate = r"\$[-+]?[\d.]+\\ [\[(][-+\d., ]*[\])]\$"
    rest = re.sub(rf"{estimate}|{own}|\\\\\n| & ", "", body)
    assert not re.search(r"[\\{}$^~#%&]", rest), rest


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(method=readable, other=readable, part=readable, text=readable)
@example(method=r"$\frac$", other="x" * 5000, part=r"\input{x}", text="x" * 5000)
@example(method="_hidden", other="", part="\x00", text="\x1b[31m\x00")
@example(method=r"\input{/etc/passwd}", other=r"1.0 [\input{x}]", part="", text="<script>alert(1)</script>")
def test_a_report_on_any_names_is_written_soon(method, other, part, text, tmp_path_factory):
    study = _strange_study(tmp_path_factory.mktemp("study") / "$s_1 <b>", method, other, part, text)
    output = _made(study)
    for table in output.glob("*.tex"):
        _no_raw_latex(table.read_text())
    page = (output / "index.html").read_text()
    own = page[: page.index("<script>")]
    assert set(re.findall("<script[^>]*>", own)) <= {'<script type="application/json">'}
    assert "<b>" not in own and "\x1b" not in page
    shutil.rmtree(study)


def test_two_strange_names_are_never_averaged_as_one(tmp_path):
    pairs = ("a\nb", "a b", "x" * 5000 + "1", "x" * 5000 + "2", "", " ", "a  b", "a\x00b")
    for index, name in enumerate(pairs):
        run_dir = write_run(tmp_path / f"run{index}", method="flash", iterations=2, every=2)
        manifest = json.loads((run_dir / "run.json").read_text())
        (run_dir / "run.json").write_text(json.dumps({**manifest, "method": name}))
    write_run(tmp_path / "half", method="flash", iterations=2, every=2)
    (tmp_path / "half/run.json").write_text(json.dumps({**manifest, "method": "\ud800"}))
    study = load_study(tmp_path)
    assert [note for note in study.notes if "half" in note and "is not text" in note]
    assert study.runs["arm"].nunique() == len(pairs)
    assert all(len(arm) <= 120 and arm.isprintable() for arm in study.runs["arm"])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=names, other=names)
def test_a_name_is_short_printable_and_its_own(text, other):
    shown = plain.name(text)
    assert 0 < len(shown) <= plain.LONGEST and shown.isprintable() and shown.encode()
    assert plain.name(shown) == shown
    assert (plain.name(other) == shown) == (other == text)
    assert len(plain.words(text, 50)) <= 50


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=names)
def test_every_format_of_a_table_holds_a_name_as_text(text):
    shown = plain.name(text)
    table = pd.DataFrame(
        {"Method": [shown, "b"], "Reward": [Estimate(2.05, -1.98, 2.12, 8), Estimate(-1.0, points=(1, 2))]}
    )
    _no_raw_latex(render.to_latex(table, "c", "l"))
    assert next(csv.DictReader(io.StringIO(render.to_csv(table))))["Method"] == shown
    line = render.to_markdown(table).splitlines()[2]
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)
    assert len(cells) == 4 and not re.search(r"(?<!\\)(?:\\\\)*[`*$<]", cells[1])
    markup = render.to_html(table)
    assert re.findall(r"<(/?\w+)", markup.replace(html.escape(shown), "")) == re.findall(
        r"<(/?\w+)", render.to_html(table.assign(Method=["a", "b"])).replace("words", "number")
    )
    assert html.escape(shown) in markup


def test_measurements_with_names_of_a_stranger_name_no_file(tmp_path):
    measurements(tmp_path)
    content = json.loads((tmp_path / "mechanism.json").read_text())
    kept = len(content["measurements"])
    first = content["measurements"][0]
    strange = [
        {**first, key: value}
        for key in ("noise", "weighting", "quantity", "step", "value")
        for value in ("../../x", [], {})
    ]
    content["measurements"] += [*strange, "x", None, 3]
    (tmp_path / "mechanism.json").write_text(json.dumps(content))
    rows, notes = load_mechanism([tmp_path])
    assert len(rows) == kept and len(notes) == 1 and notes[0].startswith("18 measurements of another kind")


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_endless_names_overflow_nothing(width, tmp_path):
    study = _strange_study(tmp_path / "s", "x" * 5000, r"$\frac$", "p", "y" * 5000)
    seen = in_browser(_made(study) / "index.html", width, tmp_path)
    assert seen["page"] <= width and seen["bad"] == []
