"""Say in a run's directory what becomes of it: its records, its `run.json`, and how it ended."""

import logging
import traceback
from pathlib import Path

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import RecordWriter, last_recorded, read_manifest, write_manifest
from flash_grpo.records.full_disk import Reserve
from flash_grpo.records.schema import BestCheckpoint, EvalRecord, FailureRecord, IterationRecord, RunManifest
from flash_grpo.run.held import HeldFolder
from flash_grpo.run.starts import StartProgress, endless_restarts, program_start
from flash_grpo.training.journal import RewardErrorElsewhere
from flash_grpo.training.ranks import Ranks

log = logging.getLogger(__name__)
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
        self.held = HeldFolder(path, ranks)
        if ranks.is_main:
            (path / FAILURE).unlink(missing_ok=True)
        if earlier := ranks.from_main(read_manifest(path) if ranks.is_main else None):
            described.starts, described.bill, described.best = earlier.starts, earlier.bill, earlier.best

    def begin(self, iteration: int, pieces: int, records_length: int) -> None:
        """Write this start to run.json (see `RunManifest.starts`) and open the records, cut back to `records_length`.

        iteration, pieces: where the run continues, as in `ProgramStart`. RuntimeError as in `refuse_endless_restarts`.
        """
        reached = max([last_recorded(self.path), *(start.reached for start in self.manifest.starts)])
        progress = self.ranks.from_main(StartProgress(iteration=iteration, pieces=pieces, reached=reached))
        self.refuse_endless_restarts(progress)
        if self.ranks.is_main:
            self.records = RecordWriter(self.path, records_length)
            self.reserve.take()
            self.manifest.starts.append(program_start(progress, self.set_aside))
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

    def refuse_endless_restarts(self, progress: StartProgress | None = None) -> None:
        """Raise RuntimeError after too many restarts of this Slurm job without progress. progress: as in `endless_restarts`."""
        if refusal := endless_restarts(self.manifest.starts, progress, self.max_idle_starts):
            raise RuntimeError(refusal)

    def complete(self, reason: str = "") -> None:
        """Write that the run is complete. reason: why before its budget was spent, '' if it was."""
        if self.ranks.is_main:
            self._write_last("completed", reason)

    def name_best(self, best: BestCheckpoint | None) -> None:
        """Write to run.json which checkpoint is kept as the best. Only rank 0 may call this, after `begin`."""
        if best != self.manifest.best:
            self.manifest.best = best
            self._write("running", "")

    def leave(self, reason: str) -> None:
        """Write why this start ends before the run is complete, where it began. The run has saved: never raises."""
        if not self.begun:
            self.held.leave_as_found()
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
            progress = StartProgress(iteration=reached, pieces=0, reached=reached)
            self.manifest.starts.append(program_start(progress, self.set_aside))
        self._write_last("failed", reason, "".join(traceback.format_exception(error)))

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
