"""The report: files, tables in every format, bad studies, speed, and how the page looks in a real browser."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_artefacts import GAINS, measurements
from test_study import write_run, write_study

import analysis
from analysis import render, report, sections
from analysis.statistics import Estimate
from analysis.study import load_study

TABLE = pd.DataFrame(
    {
        "Method": ["Flash_GRPO & co", "Full"],
        "n": ["8", "7 of 8"],
        "Reward": [Estimate(2.0512, 1.981, 2.119, 8), Estimate(1.9, 1.8, 2.0, 7)],
        "Gain": [Estimate(-0.25, -0.5, 0.04, 8, signed=True), Estimate(np.nan)],
        "Cost": [Estimate(7.25, 7.0, 7.5, 8), "> 15"],
        "p": [0.000012, np.nan],
    }
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report on seven methods, a failed and a running run, and mechanism measurements."""
    path = write_study(tmp_path_factory.mktemp("runs") / "small", gain=GAINS, seeds=range(3))
    write_run(path / "bad", method="window", seed=9, status="failed", reason="reward is not finite <prompt>")
    write_run(path / "late", method="full", seed=9, status="running", iterations=10)
    measurements(path)
    assert report.main([str(path)]) == 0
    return path / "report"


def test_markdown_shows_numbers_with_intervals():
    lines = render.to_markdown(TABLE).splitlines()
    assert lines[0] == "| Method | n | Reward | Gain | Cost | p |"
    assert (
        lines[2]
        == "| Flash_GRPO & co | 8 | 2.051 [1.981, 2.119] | -0.25 [-0.50, +0.04] | 7.25 [7.00, 7.50] | 1.2e-05 |"
    )
    assert lines[3] == "| Full | 7 of 8 | 1.900 [1.800, 2.000] | – | > 15 | – |"


def test_csv_has_value_low_high_and_n_in_columns_of_their_own():
    rows = list(csv.DictReader(io.StringIO(render.to_csv(TABLE))))
    assert float(rows[0]["Reward"]) == 2.0512
    assert (rows[0]["Reward (low)"], rows[0]["Reward (high)"], rows[0]["Reward (n)"]) == ("1.981", "2.119", "8")
    assert (rows[1]["Cost"], rows[1]["Cost (low)"]) == ("> 15", "")


def test_latex_escapes_what_latex_would_stumble_over():
    text = render.to_latex(TABLE, "100 % of λ", "x")
    assert r"Flash\_GRPO \& co & 8 & $2.051\ [1.981, 2.119]$ & $-0.25\ [-0.50, +0.04]$" in text
    assert r"\caption{100 \% of $\lambda$}" in text
    assert text.count(r"\\") == 3


def test_html_escapes_and_every_cell_names_its_column():
    text = render.to_html(TABLE.assign(Method=["<b>", "x"]))
    assert "&lt;b&gt;" in text
    assert 'data-label="Reward"><span>2.051 <span class="interval">[1.981, 2.119]</span></span>' in text


def test_only_a_verdict_of_one_word_has_its_colour():
    words = ["supported", "interval only, n = 8 < 12", "contradicted"]
    text = render.to_html(pd.DataFrame({"Verdict": words}))
    assert re.findall(r'<td class="words ([^"]*)"', text) == ["supported", "", "contradicted"]
    assert "n = 8 $<$ 12" in render.to_latex(pd.DataFrame({"Verdict": words}))


def test_the_terminal_table_is_aligned():
    widths = {len(line) for line in render.to_terminal(TABLE.drop(columns=["p"])).splitlines()}
    assert len(widths) == 1


def test_decimals_follow_the_width_of_the_interval():
    wide = pd.DataFrame({"x": [Estimate(1234.5, 1100, 1400, 8), Estimate(1000.0, 900, 1100, 8)]})
    assert list(render.cells(wide)["x"]) == ["1234 [1100, 1400]", "1000 [900, 1100]"]


def test_every_figure_comes_as_png_and_pdf_and_every_table_in_three_formats(made):
    pictures = {file.stem for file in made.glob("*.png")}
    assert pictures == {file.stem for file in made.glob("*.pdf")}
    assert pictures >= {"reward_against_pflop", "gradient_norm", "fig4", "cost_per_iteration", "variance_by_source"}
    stems = {suffix: {file.stem for file in made.glob(f"*.{suffix}")} for suffix in ("md", "csv", "tex")}
    assert stems["md"] == stems["csv"] == stems["tex"]
    assert stems["md"] >= {"verdicts", "comparison", "ablation", "effects", "differences", "stability", "runs", "cost"}


def test_the_page_is_self_contained_and_escapes_what_runs_say(made):
    page = (made / "index.html").read_text()
    own, *scripts, _ = re.split(r"<script>|</script>\n<script>", page)
    links = re.findall(r'(?:src|href)="([^"]{0,40})', own)
    assert links
    assert all(re.match(r"data:image/(png|webp);base64,|#[\w-]+$", link) for link in links)
    assert not re.search(r"url\((?!data:)", own)
    assert [script.startswith("/**\n* plotly.js (basic - minified)") for script in scripts] == [True]
    assert set(re.findall(r"<script[^>]*>", own)) == {'<script type="application/json">'}
    assert "reward is not finite &lt;prompt&gt;" in page


def test_the_page_begins_with_the_conclusion_and_ends_with_the_notes(made):
    page = (made / "index.html").read_text()
    places = [page.index(f'id="{name}"') for name in ("claims", "comparison", "settings", "notes")]
    assert places == sorted(places)
    contents = page[page.index("<nav") : page.index("</nav>")]
    assert page.index('class="lead"') < page.index('id="claims"') < page.index("<nav") < page.index('id="comparison"')
    sections = re.findall(r'<section id="([\w-]+)">', page)
    assert re.findall(r'href="#([\w-]+)"', contents) == [*sections[1:], "notes"]


def test_the_page_tells_of_failed_and_running_runs(made):
    page = (made / "index.html").read_text()
    assert "1 of 23 runs failed" in page
    assert "1 of 23 runs running" in page


def test_the_command_prints_the_table_the_notes_and_where_the_report_is(tmp_path, capsys):
    write_study(tmp_path / "s", methods=["full", "flash"], seeds=range(2))
    report.main([str(tmp_path / "s"), "--output", str(tmp_path / "out"), "--cost", "pflop"])
    printed = capsys.readouterr().out
    assert re.search(r"Flash +2 +\d\.\d+ \(", printed)
    assert "0.5 + 0.05 + 0.2" in printed
    assert f"Report: {tmp_path / 'out' / 'index.html'}" in printed
    assert (tmp_path / "out" / "reward_against_pflop.png").exists()


def test_a_report_is_made_without_torch_or_the_rest_of_the_package(tmp_path):
    write_study(tmp_path / "s", methods=["flash"], seeds=range(2))
    check = (
        "import sys; from analysis import report; report.main(sys.argv[1:]); "
        "names = {name.split('.')[0] for name in sys.modules}; assert not names & {'torch', 'hydra', 'diffusers'}; "
        "ours = {n for n in sys.modules if n.startswith('flash_grpo')}; "
        "assert all(n.startswith('flash_grpo.records') for n in ours - {'flash_grpo', 'flash_grpo.arguments'})"
    )
    here = Path(analysis.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", check, str(tmp_path / "s")], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "what", ["empty", "no records", "only a failed run", "one evaluation", "an old record", "cut short"]
)
def test_a_bad_study_gives_a_page_with_a_note_and_no_traceback(tmp_path, capsys, what):
    study = tmp_path / "s"
    study.mkdir()
    if what != "empty":
        write_run(study / "a", status="failed" if what == "only a failed run" else "completed", iterations=6, every=3)
    records = study / "a" / "records.jsonl"
    if what == "no records":
        records.write_text("")
    if what == "one evaluation":
        records.write_text(records.read_text().splitlines(keepends=True)[0])
    if what == "an old record":
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        kept = [{key: row[key] for key in row if key not in ("cost", "seconds", "prompt_rewards")} for row in lines]
        records.write_text("".join(json.dumps(row) + "\n" for row in kept))
    if what == "cut short":
        records.write_text(records.read_text()[:-20])
    assert report.main([str(study)]) == 0
    assert "note: " in capsys.readouterr().out
    assert 'id="notes"' in (study / "report" / "index.html").read_text()


def test_a_single_run_is_read_as_a_study_of_one(tmp_path, capsys):
    run_dir = write_run(tmp_path / "s" / "alone", method="flash", iterations=6, every=3, spread=0.0)
    write_run(tmp_path / "s" / "other", method="full", iterations=6, every=3)
    assert report.main([str(run_dir)]) == 0
    page = (run_dir / "report" / "index.html").read_text()
    assert "Flash-GRPO (ITG + TGR), seed 0: 1.500 → 2.000 (+0.50" in page
    assert len(load_study(run_dir).runs) == 1


def test_a_study_that_is_not_there_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        report.main([str(tmp_path / "nowhere")])
    assert left.value.code == 2
    assert "no such study" in capsys.readouterr().err


def test_a_report_s_time_beyond_its_figures_grows_slowly_with_the_runs(tmp_path):
    """1,000 runs of 300 records in under 60 s: 5 ms a run for numbers, beside 10 for loading."""
    study = load_study(write_study(tmp_path / "s", gain=GAINS, seeds=range(15), iterations=60))
    start = time.process_time()
    given = sections.material(study, "device_seconds")
    for section in (sections.claims, sections.comparison, sections.every_run):
        assert list(section(given))
    assert time.process_time() - start < 0.020 * len(study.runs)


MEASURE = """<script>
addEventListener('load', () => {
  const out = {width: innerWidth, page: document.documentElement.scrollWidth, bad: [], images: [], charts: []};
  for (const d of document.querySelectorAll('details')) d.open = true;
  for (const c of document.querySelectorAll('.chart')) {
    if (!c.parentElement.classList.contains('drawn')) draw(c);
    const legend = c.querySelectorAll('.legendtext').length, named = c.data.filter(t => t.name).length;
    const toServer = c.querySelector('.modebar [data-title*="loud"], .modebar [data-title^="Share"]');
    out.charts.push(legend == named && named > 0 && c.querySelector('.modebar') && !toServer);
  }
  for (const i of document.images) {
    if (getComputedStyle(i).display == 'none') continue;  // a chart is in its place
    const box = i.getBoundingClientRect();
    out.images.push([i.alt, i.complete && i.naturalWidth > 0 && box.width > 200 && box.height > 100]);
  }
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('script, .frame, .videos') || !e.innerText) continue;
    const box = e.getBoundingClientRect();
    const parent = e.parentElement.getBoundingClientRect();
    const outside = box.right > innerWidth + 1 || box.left < -1 || box.right > parent.right + 1;
    if (box.width && (outside || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline'))
      out.bad.push(e.tagName + '.' + e.className + ': ' + e.innerText.slice(0, 60));
  }
  parent.postMessage(JSON.stringify(out), '*');
});</script></body>"""
# A frame, because headless Chromium makes no window narrower than 500 pixels.
FRAME = """<!doctype html><body style="margin: 0">
<iframe src="{name}" style="border: 0; width: {width}px; height: 900px"></iframe><pre id="measured"></pre><script>
addEventListener('message', e => {{ document.getElementById('measured').textContent = e.data; }});</script></body>"""


def chromium() -> str:
    executable = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if executable is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium): the page was not looked at")
    return executable


def in_browser(page: Path, width: int, folder: Path) -> dict:
    """What a headless Chromium measures of the page at this width."""
    copy, frame = folder / "page.html", folder / f"frame_{width}.html"
    copy.write_text(page.read_text().replace("</body>", MEASURE))
    frame.write_text(FRAME.format(name=copy.name, width=width))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={folder / f'p{width}'}",
    ]
    flags += ["--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    ran = subprocess.run([chromium(), *flags], capture_output=True, text=True, timeout=120)
    measured = re.search(r'<pre id="measured">(\{.*?\})</pre>', ran.stdout, re.DOTALL)
    assert measured, ran.stderr[-2000:]
    return json.loads(html.unescape(measured[1]))


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_all_figures_are_there_and_no_text_overflows(made, tmp_path, width):
    seen = in_browser(made / "index.html", width, tmp_path)
    assert seen["width"] == width
    assert len(seen["images"]) + len(seen["charts"]) == len(list(made.glob("*.png")))
    assert len(seen["charts"]) >= 6 and all(seen["charts"])
    assert all(shown for _, shown in seen["images"]), seen["images"]
    assert seen["page"] <= width
    assert seen["bad"] == []


def test_the_browser_test_would_see_an_overflow_and_a_broken_image(made, tmp_path):
    page = (made / "index.html").read_text()
    page = page.replace("<h1>", '<h1 style="white-space: nowrap">' + "much too long " * 30, 1)
    broken = tmp_path / "broken.html"
    before, last = page.rsplit("data:image/png;base64,", 1)
    broken.write_text(f"{before}data:image/png;base64,AAAA{last}")
    seen = in_browser(broken, 390, tmp_path)
    assert any("much too long" in text for text in seen["bad"])
    assert sum(not shown for _, shown in seen["images"]) == 1
