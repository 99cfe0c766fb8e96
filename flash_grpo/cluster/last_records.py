"""Read from a run's records how far it came, what for and at what cost."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flash_grpo.records.files import PROGRESS, RECORDS, read_newest_first


@dataclass(frozen=True, kw_only=True)
class LastRecords:
    """What a run's last records say. The defaults are those of a run without records.

    iteration, device_seconds: of the last record. evaluation_reward, training_reward: of the last evaluation and iteration.
    age: seconds since the last record was written.
    """

    iteration: int | None = None
    device_seconds: float = 0.0
    evaluation_reward: float | None = None
    training_reward: float | None = None
    age: float | None = None


def last_records(run_dir: Path) -> LastRecords:
    """Read what the run's last records say. DamagedFileError if one cannot be read."""
    newest: dict[str, dict[str, Any]] = {}  # by kind
    for record in read_newest_first(run_dir):
        newest.setdefault(record["kind"], record)
        if "evaluation" in newest and "iteration" in newest:
            break
    charged = [newest[kind] for kind in PROGRESS if kind in newest]
    if not charged:
        return LastRecords()
    last = max(charged, key=lambda record: record["iteration"])
    return LastRecords(
        iteration=last["iteration"],
        device_seconds=last["cost"]["device_seconds"],
        evaluation_reward=newest.get("evaluation", {}).get("reward_mean"),
        training_reward=newest.get("iteration", {}).get("reward_mean"),
        age=time.time() - (run_dir / RECORDS).stat().st_mtime,
    )
