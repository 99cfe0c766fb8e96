"""Conclude from a run's evaluations what its records flag, whether it stops, and which checkpoint it keeps as the best."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.batches import Prompts
from flash_grpo.records import guards
from flash_grpo.records.checked import from_json
from flash_grpo.records.files import read_records
from flash_grpo.records.schema import BestCheckpoint, EvalRecord
from flash_grpo.run.settings import ConfigError
from flash_grpo.training.ranks import Ranks


@dataclass(kw_only=True)
class Guard:
    """Judges a run's evaluations as they come in. Every rank holds the same ones, and so concludes the same.

    stop_when: thresholds by guard, None for off. best_by: as in the configuration. evaluations: so far, oldest first.
    """

    stop_when: Mapping[str, float | None]
    best_by: str | None
    evaluations: list[EvalRecord] = field(default_factory=list)

    def recall(self, run_dir: Path, ranks: Ranks) -> None:
        """Read the run's evaluations, once its records end where its checkpoint does. Every rank calls this."""
        records = read_records(run_dir) if ranks.is_main else ()
        found = [from_json(EvalRecord, record) for record in records if record["kind"] == "evaluation"]
        self.evaluations = ranks.from_main(found)

    def judged(self, record: EvalRecord) -> EvalRecord:
        """Remember an evaluation; return its record with the flags that hold now."""
        flags = guards.flags([*self.evaluations, record], self.stop_when)
        self.evaluations.append(replace(record, flags=flags))
        return self.evaluations[-1]

    @property
    def stop_reason(self) -> str:
        """Return which guard ends the run, and why; '' if none does."""
        return guards.stop_reason(self.evaluations, self.stop_when)

    @property
    def news(self) -> str:
        """Say which guards hold at the last evaluation and did not before it; '' for none."""
        *earlier, last = self.evaluations
        before = earlier[-1].flags if earlier else []
        thresholds = guards.thresholds(self.stop_when)
        new = [name for name in last.flags if name not in before]
        said = [f"{name} ({guards.why(name, thresholds[name], self.evaluations)})" for name in new]
        return f"iteration {last.iteration}: from here on {'; '.join(said)}" if said else ""

    def best(self, kept: Collection[int]) -> BestCheckpoint | None:
        """Return the best of the evaluations after these iterations, whose checkpoints are there; None if none is kept."""
        if self.best_by is None:
            return None
        found = guards.best([record for record in self.evaluations if record.iteration in kept], self.best_by)
        if found is None:
            return None
        value = guards.value(found, self.best_by)
        assert value is not None
        return BestCheckpoint(iteration=found.iteration, by=self.best_by, value=value)


def check_guards(cfg: DictConfig, prompts: Prompts) -> None:
    """Raise ConfigError for a guard, or a best checkpoint, that asks for what this run's evaluations do not measure."""
    held_out = OmegaConf.select(cfg, "evaluation.held_out") is not None
    for key, wanted in (
        ("checkpoint.best_by", cfg.checkpoint.best_by == "held_out"),
        ("stop_when.held_out_falls", cfg.stop_when.held_out_falls is not None),
    ):
        if wanted and not held_out:
            raise ConfigError(
                f"{key}: there is no held-out reward; name one, as in reward@evaluation.held_out=fidelity"
            )
    if cfg.stop_when.held_out_falls is not None and len(prompts.test) < 2:
        raise ConfigError(
            "stop_when.held_out_falls: compares prompts, and there is one in prompts.test; give more, or null"
        )
    if cfg.stop_when.diversity_below is not None and OmegaConf.select(cfg, "evaluation.sampler.noises_per_prompt") == 1:
        raise ConfigError(
            "stop_when.diversity_below: needs evaluation.sampler.noises_per_prompt of at least 2, or null"
        )
