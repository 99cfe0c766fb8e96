"""Read what a run has saved: how far it had come, and the newest checkpoint that all its ranks can use."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.files import read_records
from flash_grpo.run import checkpoint
from flash_grpo.run.progress import Place
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class SavedProgress:
    """How far a run had come when it saved.

    batches: the sizes that divide the evaluation or the iteration after `place` into resumable results, by key.
    inside_on_ranks: how many ranks stopped in the middle of it, 0 between two. records_length: of records.jsonl, in bytes.
    """

    place: Place
    batches: dict[str, int]
    inside_on_ranks: int
    records_length: int

    @classmethod
    def of(cls, state: dict[str, Any]) -> "SavedProgress":
        """Return the progress that a checkpoint's state holds."""
        saved = state["progress"]
        return cls(
            place=Place(**saved["place"]),
            batches=saved["batches"],
            inside_on_ranks=saved["inside_on_ranks"],
            records_length=saved["records_length"],
        )

    def state(self) -> dict[str, Any]:
        return {"progress": {"iteration": self.place.iteration, **asdict(self)}}

    def refuse_others(self, run_dir: Path, name: str, batches: dict[str, int], world_size: int) -> None:
        """Raise ConfigError unless these ranks and batch sizes are those in the middle of which the run was stopped.

        name: of the checkpoint.
        """
        back = f"delete {run_dir / checkpoint.FOLDER / name} to go back to iteration {self.place.iteration}"
        if batches != self.batches:
            wanted = " ".join(f"{key}={size}" for key, size in self.batches.items())
            raise ConfigError(
                f"{run_dir} was stopped in the middle of micro-batches of other sizes: go on with {wanted}, or {back}"
            )
        if world_size != self.inside_on_ranks:
            raise ConfigError(
                f"{run_dir} was stopped in the middle of an iteration by {self.inside_on_ranks} ranks, and only as many can "
                f"go on there; these are {world_size}. Or {back}"
            )


@dataclass(frozen=True)
class Found:
    """A checkpoint as read. unfinished: what this rank had by then of the iteration; None if it was between two."""

    name: str
    state: dict[str, Any]
    unfinished: dict[str, Any] | None

    @property
    def progress(self) -> SavedProgress:
        return SavedProgress.of(self.state)


def newest_usable(run_dir: Path, ranks: Ranks) -> tuple[Found | None, dict[str, str]]:
    """Read the newest checkpoint that every rank can read whole; return also why each newer one cannot be used."""
    refused: dict[str, str] = {}
    for name in ranks.from_main(checkpoint.names(run_dir)):
        found, problem = None, ""
        try:
            found = _read(run_dir, name, ranks)
        except DamagedFileError as error:
            problem = str(error)
        worst = int(ranks.max(torch.tensor(ranks.rank if problem else -1)))
        if worst < 0:
            return found, refused
        refused[name] = ranks.from_rank(worst, problem)
    return None, refused


def _read(run_dir: Path, name: str, ranks: Ranks) -> Found:
    """Read all that this rank needs of a checkpoint. DamagedFileError if a file, or the records up to it, is damaged."""
    state = checkpoint.load(run_dir, name)
    if ranks.is_main:
        list(read_records(run_dir, SavedProgress.of(state).records_length))
    inside = SavedProgress.of(state).inside_on_ranks == ranks.world_size
    return Found(name, state, checkpoint.of_this_rank(run_dir, name, ranks) if inside else None)
