"""Load a study: the runs of `runs/<study>/` as three data frames, and notes on problems that a reader should know of."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import plain
from analysis.archive import SUFFIX, ArchiveError, unpack
from analysis.arms import named_arms, note_rewards
from analysis.reading import FLATTENED, KEPT_WHOLE, RECORD_TYPES, LoadedRun, read_run
from flash_grpo.records.files import MANIFEST, RECORDS
from flash_grpo.records.schema import Cost

RUN_COLUMNS = (
    "run",
    "method",
    "arm",
    "noise",
    "lr",
    "tuned",
    "model",
    "seed",
    "short",
    "stopped",
    "status",
    "reason",
    "finished",
    "on_cpu",
    "device",
    "world_size",
    "config",
    "git",
    "day",
    "prompts",
    "processor",
    "versions",
    "path",
)
# Characters. Names of runs are directories' names; an arm's name must fit into a legend.
LONGEST_RUN, LONGEST_NOTE = 255, 2000
MOST_NAMES = 10  # of runs, in a note


@dataclass(frozen=True, kw_only=True)
class Study:
    """The runs of a study. runs: a row per run. iterations, evaluations: a row per record, with its method, arm, noise, seed.

    An arm is what is averaged over seeds: a method, or a method with its unusual settings (see `analysis.arms`).
    runs.short: True if the run was given a share of the budget only (`budget.share`), or ended early; its last reward is what
    the rest would have left. runs.stopped: True if a guard ended the run early (`stop_when`). runs.finished: True if the
    run's last evaluation is compared. Completed runs are; while none has completed, all are.
    """

    name: str
    paths: list[Path]
    runs: pd.DataFrame
    iterations: pd.DataFrame
    evaluations: pd.DataFrame
    notes: list[str]

    @property
    def empty(self) -> bool:
        return self.runs.empty

    @property
    def on_cpu(self) -> bool:
        """Return True if device-seconds are process CPU seconds (see `records.schema.Cost`)."""
        return bool(len(self.runs)) and bool(self.runs["on_cpu"].all())

    def finished(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["run"].isin(self.runs.loc[self.runs["finished"], "run"])]

    def with_noise(self, noise: str) -> "Study":
        """Return the study's runs with one SDE noise schedule."""
        return self._part("noise", [noise])

    def only(self, arms: Iterable[str]) -> "Study":
        return self._part("arm", arms)

    def _part(self, column: str, values: Iterable[str]) -> "Study":
        frames = {name: getattr(self, name) for name in ("runs", "iterations", "evaluations")}
        return dataclasses.replace(
            self, **{name: frame[frame[column].isin(list(values))] for name, frame in frames.items()}
        )


def load_study(*paths: Path | str) -> Study:
    """Read every run directory at or under the paths (or archives), as one study; 1,000 runs of 300 records in under 10 s.

    Nothing that is on disk raises: what cannot be read, or an archive that would unpack to more than `analysis.archive`
    allows, is named in the notes, and the rest is shown.
    """
    given, notes = [Path(path) for path in paths], []
    paths = [study for path in given for study in _studies(path, notes)]
    run_dirs = [run_dir for path in paths for run_dir in _run_directories(path, notes)]
    loaded = [read_run(run_dir, _name_of(run_dir, of_several=len(paths) > 1)) for run_dir in run_dirs]
    notes += _notes_of(loaded)
    loaded = [run for run in loaded if run.row]
    frames = {kind: _frame(kind, [run.columns[kind] for run in loaded if kind in run.columns]) for kind in RECORD_TYPES}
    runs = _with_arms(pd.DataFrame([run.row for run in loaded], columns=RUN_COLUMNS), frames, notes)
    named = {kind: _join_runs(frame, runs) for kind, frame in frames.items()}
    return Study(
        name=" + ".join(plain.name(path.resolve().name.removesuffix(SUFFIX)) for path in given),
        paths=paths,
        runs=runs,
        iterations=named["iteration"],
        evaluations=named["evaluation"],
        notes=[plain.words(note, LONGEST_NOTE) for note in notes],
    )


def _studies(path: Path, notes: list[str]) -> list[Path]:
    """Return the directory, or those that an archive holds."""
    if not path.name.endswith(SUFFIX) or path.is_dir():
        return [path]
    try:
        return unpack(path)
    except ArchiveError as error:
        notes.append(str(error))
        return []


def _name_of(run_dir: Path, of_several: bool) -> str:
    """Return the run's name, behind that of its study if several are read as one."""
    return plain.name("/".join(run_dir.parts[-2 if of_several else -1 :]), LONGEST_RUN)


def _notes_of(loaded: Sequence[LoadedRun]) -> list[str]:
    """Return the runs' notes. One that more than three runs have, be it with other numbers, is said once."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for run in loaded:
        for note in run.notes:
            alike.setdefault(re.sub(r"\d+", "#", note), []).append((run.name, note))
    return [line for same in alike.values() for line in _said(same, len(loaded))]


def _said(same: list[tuple[str, str]], of: int) -> list[str]:
    if len(same) <= 3:
        return [f"{name}: {note}" for name, note in same]
    first, note = same[0]
    differ = f" (the numbers are those of {first}; they differ)" * (len({text for _, text in same}) > 1)
    return [f"{len({name for name, _ in same})} of {of} runs: {note}{differ}"]


def _run_directories(path: Path, notes: list[str]) -> list[Path]:
    if not path.is_dir():
        notes.append(f"{path} is not a directory: there is no study to read.")
        return []
    if _is_run(path):
        return [path]
    try:
        items = sorted(path.iterdir())
    except OSError as error:
        notes.append(f"{path} cannot be read ({error.strerror}).")
        return []
    run_dirs = [item for item in items if item.is_dir() and _is_run(item)]
    if not run_dirs:
        notes.append(f"{path} holds no runs (a run is a directory with a {MANIFEST}): there is nothing to show yet.")
    return run_dirs


def _is_run(path: Path) -> bool:
    return (path / MANIFEST).exists() or (path / RECORDS).exists()


def _frame(kind: str, parts: list[dict[str, np.ndarray]]) -> pd.DataFrame:
    """Stack all runs' records of a kind; the standard columns exist even if there is no record."""
    expected = [item.name for item in dataclasses.fields(RECORD_TYPES[kind]) if item.name not in FLATTENED]
    standard = ["run", *expected, *(f"cost.{item.name}" for item in dataclasses.fields(Cost))]
    names = dict.fromkeys([*standard, *(name for part in parts for name in part)])
    return pd.DataFrame({name: _stacked(name, parts) for name in names})


def _stacked(name: str, parts: list[dict[str, np.ndarray]]) -> np.ndarray:
    kind = object if name in ("run", *KEPT_WHOLE) else float
    stacked = [part[name] if name in part else np.full(len(part["run"]), np.nan, kind) for part in parts]
    return np.concatenate(stacked) if stacked else np.empty(0, kind)


def _with_arms(runs: pd.DataFrame, frames: dict[str, pd.DataFrame], notes: list[str]) -> pd.DataFrame:
    runs = runs.copy()
    runs["arm"] = named_arms(runs, notes)
    note_rewards(runs, notes)
    runs["finished"] = _finished(runs, frames["evaluation"], notes)
    return runs


def _finished(runs: pd.DataFrame, evaluations: pd.DataFrame, notes: list[str]) -> list[bool]:
    """Return which runs the comparisons use: for each arm and seed one completed run that has been evaluated."""
    completed = runs["status"] == "completed"
    if len(runs) and not completed.any():
        counts = ", ".join(f"{number} {status}" for status, number in runs["status"].value_counts().items())
        notes.append(f"No run has completed ({counts}): every number is computed from the records so far.")
        completed |= True
    for status, some in runs[~completed].groupby("status"):
        named = _some([f"{row.run} ({row.reason})" if row.reason else row.run for row in some.itertuples()], "; ")
        notes.append(
            f"{len(some)} of {len(runs)} runs {status}: not in averages and tables; curves show them as thin lines, as far as "
            f"they have records: {named}."
        )
    length = evaluations.groupby("run", observed=True)["iteration"].max()
    evaluated = runs["run"].isin(length[length > 0].index)
    if unevaluated := list(runs.loc[completed & ~evaluated, "run"]):
        notes.append(f"Not evaluated after the start, so not in averages and tables: {_some(unevaluated)}.")
    return list(completed & evaluated & ~_repeats(runs, length, completed, notes))


def _some(names: list[str], between: str = ", ") -> str:
    """Join the names; of more than MOST_NAMES only the first ones, with how many there are besides."""
    rest = len(names) - MOST_NAMES
    return between.join(names[:MOST_NAMES]) + (f"{between}and {rest} more" if rest > 0 else "")


def _repeats(runs: pd.DataFrame, length: pd.Series, completed: pd.Series, notes: list[str]) -> pd.Series:
    """Return which runs repeat the arm, noise and seed of a longer run. They are left out, so that a seed counts once."""
    ordered = (
        runs[completed]
        .assign(length=runs["run"].map(length).astype(float))
        .sort_values("length", ascending=False, kind="stable")
    )
    again = ordered[ordered.duplicated(["arm", "noise", "seed"])]
    said = [f"{row.run} repeats {row.arm}, seed {row.seed}, of a longer run" for row in again.itertuples()]
    said = said if len(said) <= 3 else [f"{len(said)} runs repeat an arm and seed of longer runs"]
    notes.extend(f"{words}: left out, a seed counts once." for words in said)
    return runs["run"].isin(again["run"])


def _join_runs(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    by_name = runs.set_index("run")
    return frame.assign(**{name: frame["run"].map(by_name[name]) for name in ("method", "arm", "noise", "seed")})
