"""Look at a study: the state of every run, and what could not be asked."""

from dataclasses import dataclass, replace
from pathlib import Path

from flash_grpo.cluster import slurm
from flash_grpo.cluster.bill import write_bills
from flash_grpo.cluster.orphans import adopt_if_free
from flash_grpo.cluster.run_state import RunState, run_states
from flash_grpo.cluster.study_lock import unsent
from flash_grpo.records.submissions import FOLDER


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a study finds. unanswered, no_accounting: why Slurm or its accounting does not answer; '' if it does."""

    runs: list[RunState]
    unanswered: str = ""
    no_accounting: str = ""

    @property
    def notice(self) -> str:
        """Return the line above the table, '' for none."""
        if self.unanswered:
            return f"{self.unanswered}: what follows is what the runs wrote themselves"
        if self.no_accounting:
            return f"no bill: Slurm's accounting does not answer ({self.no_accounting}); a run's own files tell how it ended"
        return ""


def look(study: Path) -> Look:
    """Return the state of every run, after writing the bills of those that are over.

    Runs that a launcher has yet to submit, because Slurm's queue has no room for them, are among them.
    """
    # before the jobs are read: what is submitted meanwhile is in both, not in none
    names, launcher = unsent(study / FOLDER)
    seen = _ask(study)
    return replace(seen, runs=_with_unsent(seen.runs, names, launcher))


def _with_unsent(runs: list[RunState], names: list[str], launcher: str) -> list[RunState]:
    """Add the runs that a launcher has yet to submit. launcher: which, '' if it has died."""
    states = {run.run: run for run in runs}
    for name in names:
        never = RunState(run=name, job=None, state="unknown", why="was never submitted; give the sweep's command again")
        run = states.get(name, never)
        waits = launcher and not run.live
        states[name] = replace(run, state="waiting", why=f"for room in the queue: {launcher}") if waits else run
    return list(states.values())


def _ask(study: Path) -> Look:
    try:
        adopt_if_free(study)
        answer = slurm.ask_about(study)
    except slurm.NoSlurmError as error:
        return Look(runs=run_states(study, None), unanswered=f"Slurm could not be asked ({error})")
    write_bills(study, answer)
    return Look(runs=run_states(study, answer), no_accounting=answer.no_accounting)
