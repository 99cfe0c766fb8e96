"""Read from a run's records how far it came, what for and at what cost."""

import time
from pathlib import Path
from typing import Any

from flash_grpo.records.files import PROGRESS, RECORDS, read_newest_first


def last_records(run_dir: Path) -> dict[str, Any]:
    """Read the fields of `RunState` that come from the run's records; none if there are no records. DamagedFileError
    if one cannot be read.
    """
    newest: dict[str, dict[str, Any]] = {}  # by kind
    for record in read_newest_first(run_dir):
        newest.setdefault(record["kind"], record)
        if "evaluation" in newest and "iteration" in newest:
            break
    charged = [newest[kind] for kind in PROGRESS if kind in newest]
    if not charged:
        return {}
    last = max(charged, key=lambda record: record["iteration"])
    return {
        "iteration": last["iteration"],
        "device_seconds": last["cost"]["device_seconds"],
        "evaluation_reward": newest.get("evaluation", {}).get("reward_mean"),
        "training_reward": newest.get("iteration", {}).get("reward_mean"),
        "age": time.time() - (run_dir / RECORDS).stat().st_mtime,
    }
