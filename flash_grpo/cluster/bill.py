"""Slurm's bill for a run."""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flash_grpo.cluster.slurm import Answer, Start
from flash_grpo.records.files import MANIFEST, read_newest_first, write_atomically
from flash_grpo.records.submissions import job_of, submitted


def bill_of(run_dir: Path, jobs: list[dict[str, Any]], answer: Answer) -> dict[str, Any] | None:
    """`RunManifest.bill` of a run as of now, over all its jobs; None where none has started.

    Starts that an earlier bill knows and the accounting has forgotten are kept.
    """
    began = [(one, line["ranks"]) for line in jobs for one in answer.starts.get(line["job_id"], []) if one.start]
    entries = [_entry(one, ranks) for one, ranks in began]
    known = {(one["job"], one["start"]): one for one in [*(_written(run_dir) or {}).get("starts", []), *entries]}
    if not known:
        return None
    starts = sorted(known.values(), key=lambda one: one["start"])
    total = sum(one["seconds"] * one["devices"] for one in starts)
    useful = min(total, _useful(run_dir))
    return {
        "starts": starts,
        "device_seconds": total,
        "useful_device_seconds": useful,
        "lost_device_seconds": total - useful,
    }


def write_bills(study: Path, answer: Answer) -> list[str]:
    """Into the run.json of each run that is over, and only there: while a run lives, run.json is its own to write.

    Returns the runs that have left the queue and of whose end the accounting does not know yet.
    """
    unsettled = []
    for run, jobs in submitted(study).items():
        ids = [line["job_id"] for line in jobs]
        if any(job in answer.queued for job in ids) or not os.access(study / run / MANIFEST, os.W_OK):
            continue
        if not all(start.over for job in ids for start in answer.starts.get(job, [])):
            unsettled.append(run)
            continue
        with suppress(OSError):  # a full disk; the next one to ask writes it
            _write(study / run, bill_of(study / run, jobs, answer), ids)
    return unsettled


def _entry(start: Start, ranks: int) -> dict[str, Any]:
    entry = asdict(start)
    del entry["over"]
    return {**entry, "devices": start.devices or ranks}


def _written(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / MANIFEST
    return json.loads(path.read_text()).get("bill") if path.exists() else None


def _useful(run_dir: Path) -> float:
    """The suite's own device-seconds, by its last record: what the run's result took, work done twice counted once, and
    without those of reward servers, which are jobs of their own."""
    last = next((one for one in read_newest_first(run_dir) if "cost" in one), None)
    if last is None:
        return 0.0
    return last["cost"]["device_seconds"] + last["evaluation_seconds"] - last["cost"].get("server_seconds", 0.0)


def _write(run_dir: Path, found: dict[str, Any] | None, jobs: list[str]) -> None:
    manifest = json.loads((run_dir / MANIFEST).read_text())
    last = manifest.get("starts", [])[-1:]
    elsewhere = last and job_of(last[0]) not in jobs  # it went on without Slurm, and may live
    if found and manifest.get("bill") != found and not elsewhere:
        write_atomically(run_dir / MANIFEST, json.dumps({**manifest, "bill": found}, indent=1) + "\n")
