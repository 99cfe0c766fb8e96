"""Test `python -m flash_grpo.evaluate --vbench`: where it puts VBench's results."""

import json

import pytest

from analysis import paper
from flash_grpo import evaluate
from flash_grpo.records.vbench import read_vbench


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
