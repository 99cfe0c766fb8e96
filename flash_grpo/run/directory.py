"""Hold a run's directory for one group of processes: its lock, its `run.json`, and how the run ended."""

import fcntl
import logging
import signal
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import MANIFEST, RecordWriter, last_recorded, read_manifest, write_manifest
from flash_grpo.records.full_disk import Reserve, naming_full_disk
from flash_grpo.records.locking import locked
from flash_grpo.records.schema import EvalRecord, FailureRecord, IterationRecord, RunManifest
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run import manifest
from flash_grpo.training.journal import Leave, RewardErrorElsewhere
from flash_grpo.training.ranks import Ranks

log = logging.getLogger(__name__)
LOCK, LOCK_PATIENCE_S = ".lock", 600
UNLOCKED = "nothing keeps a second process from writing this run"
FAILURE = ".failure"  # its creation decides which of several failing ranks is the first


class RunDirectory:
    """The directory of one run. Only rank 0 writes here.

    The exception is the reason of a failure: the first rank that fails writes it, because its failure may kill rank 0 before
    rank 0 can.
    """

    def __init__(self, path: Path, described: RunManifest, ranks: Ranks, max_idle_starts: int):
        """Wait for the lock, on all ranks, and only then read the run.json of an earlier start.

        ValueError if another process holds the lock; Leave if Slurm asks this run to stop meanwhile.
        """
        self.path, self.manifest, self.ranks, self.max_idle_starts = path, described, ranks, max_idle_starts
        self.records: RecordWriter | None = None
        self.begun, self.reserve = False, Reserve(path)
        self.set_aside: list[str] = []  # see ProgramStart
        self._new = not (path / MANIFEST).exists()
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        with naming_full_disk(path):
            path.mkdir(parents=True, exist_ok=True)
            self.lock = lock(path) if ranks.is_main else None
        if ranks.is_main:
            (path / FAILURE).unlink(missing_ok=True)
        if earlier := ranks.from_main(read_manifest(path) if ranks.is_main else None):
            described.starts, described.bill = earlier.starts, earlier.bill

    def begin(self, iteration: int, pieces: int, records_length: int) -> None:
        """Write this start to run.json (see `RunManifest.starts`) and open the records, cut back to `records_length`.

        iteration, pieces: where the run continues, as in `ProgramStart`. RuntimeError as in `refuse_endless_restarts`.
        """
        reached = max([last_recorded(self.path), *(start.reached for start in self.manifest.starts)])
        progress = self.ranks.from_main({"iteration": iteration, "pieces": pieces, "reached": reached})
        self.refuse_endless_restarts(progress)
        if self.ranks.is_main:
            self.records = RecordWriter(self.path, records_length)
            self.reserve.take()
            self.manifest.starts.append(manifest.start(progress, self.set_aside))
            self._write("running", "")
        self.ranks.barrier()  # otherwise another rank could fail before run.json says "running"
        self.begun = True

    def append(self, record: IterationRecord | EvalRecord | FailureRecord) -> None:
        """Append a record. Only rank 0 may call this, after `begin`."""
        assert self.records is not None
        self.records.append(record)

    @property
    def written(self) -> int:
        """Return the length of records.jsonl in bytes, after flushing it to disk."""
        assert self.records is not None
        return self.records.length

    def refuse_endless_restarts(self, progress: dict[str, int] | None = None) -> None:
        """Raise RuntimeError after too many restarts of this Slurm job without progress. progress: as in `endless_restarts`."""
        if refusal := manifest.endless_restarts(self.manifest.starts, progress, self.max_idle_starts):
            raise RuntimeError(refusal)

    def complete(self) -> None:
        """Write that the run is complete."""
        if self.ranks.is_main:
            self._write_last("completed", "")

    def leave(self, reason: str) -> None:
        """Write why this start ends before the run is complete, where it began. The run has saved: never raises."""
        if not self.begun:
            self.leave_as_found()
        elif self.ranks.is_main:
            try:
                self._write_last("running", reason)
            except OSError as problem:
                log.error("%s: the end of this start could not be noted there: %s", self.path, problem)

    def fail(self, error: BaseException) -> None:
        """Write the reason to run.json, if this rank is the first to fail; rank 0 also appends a FailureRecord.

        Never raises: what cannot be written is logged, and the caller's `error` is what the user sees.
        """
        for write in (self._write_failed, self._append_failure):
            try:
                write(_reason(error, self.ranks), error)
            except Exception as problem:
                log.error("%s: the failure could not be noted there: %s", self.path, problem)

    def _append_failure(self, reason: str, error: BaseException) -> None:
        if self.records:
            self.append(FailureRecord(iteration=last_recorded(self.path) + 1, reason=self._on_disk().reason or reason))

    def _on_disk(self) -> RunManifest:
        """Return what run.json says, which another rank may have written; if it is damaged, what this rank knows."""
        try:
            return read_manifest(self.path) or self.manifest
        except DamagedFileError as damaged:
            log.warning(str(damaged))
            return self.manifest

    def _write_failed(self, reason: str, error: BaseException) -> None:
        if isinstance(error, RewardErrorElsewhere) or not _is_first(self.path, self.ranks):
            return  # the others fail because of the first
        self.manifest = self._on_disk()
        if not self.begun:
            reached = last_recorded(self.path)
            progress = {"iteration": reached, "pieces": 0, "reached": reached}
            self.manifest.starts.append(manifest.start(progress, self.set_aside))
        self._write_last("failed", reason, "".join(traceback.format_exception(error)))

    def leave_as_found(self) -> None:
        """Remove the directories that this start has created, if the run did not exist before."""
        if self.ranks.is_main and self._new:
            (self.path / LOCK).unlink()
            with suppress(OSError):
                for folder in self._made:
                    folder.rmdir()

    def _write_last(self, status: str, reason: str, trace: str = "") -> None:
        """Write this start's last word, into the space that it has kept for it."""
        self.reserve.release()
        self._write(status, reason, trace)

    def _write(self, status: str, reason: str, trace: str = "") -> None:
        self.manifest.status, self.manifest.reason, self.manifest.traceback = status, reason, trace
        write_manifest(self.path, self.manifest)


def _reason(error: BaseException, ranks: Ranks) -> str:
    of_a_rank = ranks.world_size > 1 and not isinstance(error, RewardErrorElsewhere)
    rank = f" (rank {ranks.rank} of {ranks.world_size})" if of_a_rank else ""
    return f"{type(error).__name__}: {error}{rank}"


def _is_first(directory: Path, ranks: Ranks) -> bool:
    """Return True if no other rank has failed before; the file may be impossible to make, which proves nothing."""
    try:
        open(directory / FAILURE, "x").close()
    except FileExistsError:
        return ranks.world_size == 1
    except OSError as problem:
        log.warning("%s: %s", directory / FAILURE, problem.strerror)
    return True


def lock(directory: Path) -> TextIO:
    """Lock the directory while the returned file is open, so that no second process overwrites this one's checkpoints.

    Under Slurm, wait up to LOCK_PATIENCE_S for an earlier start of the same job: it may still be ending, or be alive on a
    node that lost its connection. ValueError if the lock stays taken; Leave if this process is asked to stop meanwhile.
    """
    file = open(directory / LOCK, "w")  # noqa: SIM115 -- stays open until the run ends
    patience = LOCK_PATIENCE_S if SlurmJob.here() else 0
    until = time.monotonic() + patience
    while not locked(file, fcntl.lockf, UNLOCKED):
        if time.monotonic() >= until:
            holder = manifest.last_start(directory)
            raise ValueError(f"{directory}: another process is at work on this run{holder}; wait for it, or stop it")
        if signal.sigpending() & {signal.SIGTERM, signal.SIGUSR2}:
            raise Leave
        time.sleep(1)
    return file
