"""What a launcher prints of a run that has ended well."""

import logging
from types import SimpleNamespace

from flash_grpo.cluster.board import Board
from flash_grpo.records.files import write_manifest
from flash_grpo.records.schema import RunManifest

REASON = "stopped by stop_when.diversity_below at iteration 40: diversity 0.041 is below 0.5 of the base's 0.103"
ABOUT = dict.fromkeys(("run_name", "study", "method", "model", "config_hash", "schedule_hash"), "")


def test_a_run_that_a_guard_ended_is_finished_and_says_why(tmp_path, caplog):
    points = []
    for name, reason in (("whole", ""), ("early", REASON)):
        (tmp_path / name).mkdir()
        about = {**ABOUT, "seed": 0, "config": {}, "schedule": {}, "git": None, "packages": {}, "hardware": {}}
        write_manifest(tmp_path / name, RunManifest(**about, world_size=1, status="completed", reason=reason))
        points.append(SimpleNamespace(name=name, directory=str(tmp_path / name), began=0.0, took=0.0, failure=""))
    board = Board(running=points)
    with caplog.at_level(logging.INFO):
        board.collect(lambda running: [(point, "") for point in list(running)])
    whole, early = caplog.messages
    assert whole.startswith("finished  1/2  whole after") and "stopped" not in whole
    assert early.startswith("finished  2/2  early after") and early.endswith(f", {REASON}")
