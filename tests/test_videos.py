"""Test videos on disk, and VBench's results."""

import json

import imageio.v3 as imageio
import pytest
import torch

from analysis import paper
from flash_grpo import evaluate
from flash_grpo.measure.videos import vbench_name, write_mp4
from flash_grpo.records.vbench import read_vbench


def test_names_are_vbenchs_where_the_file_system_allows():
    assert vbench_name("a cat, running", 3) == "a cat, running-3.mp4"
    long, other = "x" * 500 + "a", "x" * 500 + "b"
    assert len(vbench_name("ü" * 300, 0).encode()) <= 255
    assert vbench_name(long, 0) != vbench_name(other, 0)
    assert "/" not in vbench_name("a/b", 0) and vbench_name("a/b", 0) != vbench_name("a_b", 0)


def test_an_mp4_shows_what_was_written(tmp_path):
    ramp = torch.arange(32).reshape(1, 1, 32, 1).expand(5, 30, 32, 3) * 7
    video = (ramp + torch.arange(5).reshape(5, 1, 1, 1) * 5).clamp(max=255).to(torch.uint8)
    write_mp4(tmp_path / "some" / "video.mp4", video)
    read = torch.from_numpy(imageio.imread(tmp_path / "some" / "video.mp4", plugin="FFMPEG"))
    assert read.shape == video.shape
    assert (read.int() - video.int()).abs().float().mean() < 4


def test_vbench_results_are_read_as_percent(tmp_path):
    file = tmp_path / "x_eval_results.json"
    file.write_text(json.dumps({"subject_consistency": [0.97, [{"video_path": "a"}]], "imaging_quality": [0.625, []]}))
    assert read_vbench(file) == {"subject_consistency": 97.0, "imaging_quality": 62.5}
    for wrong in ("[]", "{", '{"a": []}'):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="not VBench's results"):
            read_vbench(file)


def test_a_vbench_file_in_percent_is_not_multiplied_again(tmp_path):
    file = tmp_path / "x_eval_results.json"
    file.write_text(json.dumps({"subject_consistency": [97.0, []], "object_class": 0.5}))
    assert read_vbench(file) == {"subject_consistency": 97.0, "object_class": 0.5}


def test_vbench_results_that_were_read_back_fill_table_1(tmp_path, capsys):
    file, run_dir = tmp_path / "x_eval_results.json", tmp_path / "run"
    run_dir.mkdir()
    file.write_text(json.dumps({"subject_consistency": [0.97, []], "imaging_quality": [0.625, []]}))
    evaluate.main([str(run_dir), "--vbench", str(file)])
    assert json.loads(capsys.readouterr().out) == {"subject_consistency": 97.0, "imaging_quality": 62.5}
    filled = paper.vbench_scores(run_dir)
    assert (filled["subject_consistency"], filled["imaging_quality"]) == (97.0, 62.5)


@pytest.mark.parametrize(
    ("judged", "kept"),
    [
        ("", "vbench.json"),
        ("evaluation/000120", "vbench.json"),
        ("vbench/000120", "vbench.json"),
        ("evaluation/base", "evaluation/base/vbench.json"),
        ("vbench/base", "evaluation/base/vbench.json"),
    ],
)
def test_vbench_results_go_where_the_analysis_reads_them_whichever_folder_was_judged(tmp_path, capsys, judged, kept):
    file, run_dir = tmp_path / "x_eval_results.json", tmp_path / "run"
    (run_dir / judged).mkdir(parents=True)
    (run_dir / "run.json").touch()
    file.write_text(json.dumps({"imaging_quality": [0.625, []]}))
    evaluate.main([str(run_dir / judged), "--vbench", str(file)])
    assert read_vbench(run_dir / kept) == {"imaging_quality": 62.5}
    assert [path.name for path in run_dir.rglob("vbench.json")] == ["vbench.json"]


def test_vbench_results_of_one_dimension_leave_the_others(tmp_path, capsys):
    file = tmp_path / "x_eval_results.json"
    for results in ({"a": [0.5, []], "b": [0.25, []]}, {"b": [0.75, []]}):
        file.write_text(json.dumps(results))
        evaluate.main([str(tmp_path), "--vbench", str(file)])
    assert read_vbench(tmp_path / "vbench.json") == {"a": 50.0, "b": 75.0}
    file.write_text(json.dumps({"c": [12.5, []]}))  # in percent
    evaluate.main([str(tmp_path), "--vbench", str(file)])
    assert read_vbench(tmp_path / "vbench.json") == {"a": 50.0, "b": 75.0, "c": 12.5}
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["BASE", "--vbench", str(file)])
    assert "name the one whose videos were judged" in capsys.readouterr().err
