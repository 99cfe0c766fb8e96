"""Videos before and after training on the page: of one seed a method, sorted, with what did not improve marked."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from test_study import PROMPTS, write_run

from analysis import videos
from analysis.archive import VIDEOS, main, pack, unpack
from analysis.page import videos_html
from analysis.sections import before_and_after, material
from analysis.study import load_study


def animation(shade: int) -> bytes:
    frames = [Image.new("RGB", (8, 8), (shade, step * 60, 0)) for step in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "webp", save_all=True, append_images=frames[1:], duration=125, loop=0)
    return buffer.getvalue()


def write_videos(run_dir: Path, shade: int, count: int = 2) -> None:
    """Small videos as a run keeps them: the same ones at the start of every run, of one shade at the end."""
    for folder, of in (("start", 10), ("end", shade)):
        path = run_dir / "samples" / folder
        path.mkdir(parents=True)
        (path / "prompts.json").write_text(json.dumps(PROMPTS[:count]))
        for index in range(count):
            (path / f"{index:02d}.webp").write_bytes(animation(of + index))


@pytest.fixture
def study(tmp_path) -> Path:
    for method, gain in (("flash", 0.5), ("full", -0.2)):
        for seed in (0, 1, 2):
            run_dir = write_run(
                tmp_path / "s" / f"{method}{seed}",
                method=method,
                seed=seed,
                gain=gain,
                spread=0.0,
                iterations=4,
                every=2,
            )
            if seed:  # the first run is of a version that kept none
                write_videos(run_dir, shade=100 * seed + len(method))
    return tmp_path / "s"


def test_a_sheet_shows_the_lowest_seed_with_videos_and_the_records_rewards(study):
    [sheet], absent = videos.sheets(load_study(study))
    assert absent == ""
    assert sheet.methods == ["Full", "Flash"]
    assert sheet.heads == ["seed 1, 0 of 2 better", "seed 1, 2 of 2 better"]
    first = sheet.rows[0]
    assert first.prompt == PROMPTS[0] and first.before.reward == pytest.approx(1.1)
    assert [clip.change for clip in first.after] == pytest.approx([-0.2, 0.5])
    assert [clip.improved for clip in first.after] == [False, True]
    assert first.before.source != first.after[0].source != first.after[1].source


def test_the_page_marks_the_prompts_that_did_not_improve(study):
    [sheet], _ = videos.sheets(load_study(study))
    table = videos_html(sheet)
    assert table.count('class="not-better"') == 2
    assert table.count("data:image/webp;base64,") == 2 * 3
    assert "−0.20" in table and "+0.50" in table


def test_methods_that_start_from_other_videos_have_a_sheet_of_their_own(study):
    (study / "flash1/samples/start/00.webp").write_bytes(animation(77))
    found, _ = videos.sheets(load_study(study))
    assert [sheet.methods for sheet in found] == [["Full"], ["Flash"]]


@pytest.mark.parametrize("damage", ["not an animation", "too large", "no list", "cut short", "another prompt"])
def test_what_is_damaged_is_left_out_and_said(study, damage):
    for seed in (1, 2):
        folder = study / f"flash{seed}/samples/end"
        for index in range(2):
            file = folder / f"{index:02d}.webp"
            if damage in ("not an animation", "too large"):
                file.write_bytes(b"<script>" if damage == "not an animation" else animation(1) + bytes(2**17))
        prompts = {"no list": '{"a": 1}', "cut short": '["a ', "another prompt": '["x", 3]'}
        if damage in prompts:
            (folder / "prompts.json").write_text(prompts[damage])
    [sheet], absent = videos.sheets(load_study(study))
    assert sheet.methods == ["Full"] and absent.endswith("Flash.")


def test_a_study_without_videos_says_so_in_one_line(tmp_path):
    write_run(tmp_path / "s" / "a", iterations=4, every=2)
    [item] = before_and_after(material(load_study(tmp_path / "s"), "device_seconds"))
    assert item.videos is None and item.caption.startswith("Without small videos") and "\n" not in item.caption


def test_an_archive_keeps_the_videos_of_one_seed_a_method_and_the_same_page(study, tmp_path):
    main([str(study), str(tmp_path / "s.tar.xz")])
    [unpacked] = unpack(tmp_path / "s.tar.xz")
    assert sorted({path.parent.parent.parent.name for path in unpacked.rglob("*.webp")}) == ["flash1", "full1"]
    assert (unpacked / "flash1/samples/end/00.webp").read_bytes() == (study / "flash1/samples/end/00.webp").read_bytes()
    assert videos.sheets(load_study(tmp_path / "s.tar.xz")) == videos.sheets(load_study(study))


def test_an_archive_holds_no_more_than_its_share_of_videos(study, tmp_path, monkeypatch):
    size = sum(file.stat().st_size for name in VIDEOS if (file := study / "flash1" / name).is_file())
    monkeypatch.setattr("analysis.archive.MOST_VIDEO_BYTES", size + 10)
    pack([study], tmp_path / "s.tar.xz")
    [unpacked] = unpack(tmp_path / "s.tar.xz")
    assert len({path.parent.parent.parent for path in unpacked.rglob("*.webp")}) == 1
