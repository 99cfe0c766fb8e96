"""Look at a study: the state of every run, and what could not be asked."""

from dataclasses import dataclass
from pathlib import Path

from flash_grpo.cluster import slurm
from flash_grpo.cluster.bill import write_bills
from flash_grpo.cluster.run_state import RunState, run_states


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
    """Return the state of every run, after writing the bills of those that are over."""
    try:
        answer = slurm.ask_about(study)
    except slurm.NoSlurmError as error:
        return Look(runs=run_states(study, None), unanswered=f"Slurm could not be asked ({error})")
    write_bills(study, answer)
    return Look(runs=run_states(study, answer), no_accounting=answer.no_accounting)
