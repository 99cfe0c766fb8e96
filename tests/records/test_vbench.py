"""Test reading VBench's results."""

import json

import pytest

from flash_grpo.records.vbench import read_vbench


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
