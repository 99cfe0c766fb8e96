"""Compute what Slurm charges for a run, and write it into the run's run.json."""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from flash_grpo.cluster.slurm import Answer, JobStart
from flash_grpo.records.billed import Bill, BilledStart
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import MANIFEST, PROGRESS, read_manifest, read_newest_first, write_atomically
from flash_grpo.records.known_jobs import known_jobs
from flash_grpo.records.schema import RunManifest
from flash_grpo.records.submissions import SubmittedRun


def bill_of(run_dir: Path, manifest: RunManifest | None, jobs: list[SubmittedRun], answer: Answer) -> Bill | None:
    """Return the run's bill as of now, over all its jobs; None if no job has started.

    manifest: of run.json, None if there is none or it is damaged. jobs: all of the run's, see `known_jobs`. Starts that are in
    run.json's bill and no longer in the accounting are kept, because sites delete old accounting entries.
    """
    earlier = manifest.bill.starts if manifest and manifest.bill else []
    now = [_billed(start, run.ranks) for run in jobs for start in answer.starts.get(run.job_id, []) if start.start]
    starts = {(start.job, start.start): start for start in [*earlier, *now]}
    if not starts:
        return None
    total = sum(start.seconds * start.devices for start in starts.values())
    useful = min(total, _useful_seconds(run_dir))
    return Bill(
        starts=sorted(starts.values(), key=lambda start: start.start),
        device_seconds=total,
        useful_device_seconds=useful,
        lost_device_seconds=total - useful,
    )


def readable_manifest(run_dir: Path) -> tuple[RunManifest | None, str]:
    """Return the run's manifest, None if there is none or it is damaged, and what is wrong with it, '' for nothing."""
    try:
        return read_manifest(run_dir), ""
    except DamagedFileError as damaged:
        return None, str(damaged)


def write_bills(study: Path, answer: Answer) -> list[str]:
    """Write the bill into run.json of every run that is over. A live run's run.json is left alone: only the run writes it.

    Return the runs that have left the queue but whose end is not in the accounting yet; none, and write nothing, if the
    accounting does not answer.
    """
    if answer.no_accounting:
        return []
    unsettled = []
    for run, jobs in known_jobs(study).items():
        ids = [job.job_id for job in jobs]
        if any(job in answer.queued for job in ids) or not os.access(study / run / MANIFEST, os.W_OK):
            continue
        if not all(start.over for job in ids for start in answer.starts.get(job, [])):
            unsettled.append(run)
            continue
        with suppress(OSError):  # a full disk: the next call writes the bill
            manifest = readable_manifest(study / run)[0]
            _write(study / run, manifest, bill_of(study / run, manifest, jobs, answer), ids)
    return unsettled


def _billed(start: JobStart, ranks: int) -> BilledStart:
    return BilledStart(
        job=start.job, state=start.state, start=start.start, seconds=start.seconds, devices=start.devices or ranks
    )


def _useful_seconds(run_dir: Path) -> float:
    """Return the device-seconds that the run's result took, by its last record; 0 if there is none.

    Work that was done twice counts once. Reward servers do not count: they are jobs of their own.
    """
    try:
        last = next((record for record in read_newest_first(run_dir) if record["kind"] in PROGRESS), None)
    except DamagedFileError:
        last = None
    if last is None:
        return 0.0
    return last["cost"]["device_seconds"] + last["evaluation_seconds"] - (last["cost"].get("server_seconds") or 0.0)


def _write(run_dir: Path, manifest: RunManifest | None, bill: Bill | None, jobs: list[str]) -> None:
    """Write the bill unless the run has gone on outside `jobs`: it may be alive there and write run.json itself."""
    if bill is None or manifest is None or manifest.bill == bill:
        return
    last = manifest.starts[-1] if manifest.starts else None
    if last is None or (last.job and last.job.name in jobs):
        entry = json.loads((run_dir / MANIFEST).read_text())  # not `manifest`: keys of other versions are kept
        write_atomically(run_dir / MANIFEST, json.dumps({**entry, "bill": asdict(bill)}, indent=1) + "\n")
