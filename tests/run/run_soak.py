"""A soak of the run itself: `python tests/run/run_soak.py` prints what it measured, as JSON.

Two runs of the tiny world at tiny sizes, in this process: one of many iterations, one of many evaluations. After each record
the process's memory and descriptors are read. Exit code 1 if a bound is broken: from the end of the first third to the end,
memory may grow by GROWTH_MB, and the number of descriptors not at all.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
from hydra import compose, initialize_config_dir

from flash_grpo.run import loop
from flash_grpo.run.compose import CONF

GROWTH_MB = 16
TINY = (
    "device=cpu",
    "threads=1",
    "schedule.num_steps=4",
    "method.plan.last_step=2",
    "rollout.layout.num_prompts=1",
    "rollout.layout.group_size=2",
    "evaluation.sampler.schedule.num_steps=2",
    "evaluation.sampler.noises_per_prompt=1",
    "checkpoint.every=10",
    "budget.pflop=null",
)


@dataclass(kw_only=True)
class Soak:
    """iterations: of the first run. evaluations: of the second one. samples: megabytes and descriptors after each record."""

    iterations: int = 300
    evaluations: int = 500
    samples: list[tuple[float, int]] = field(default_factory=list)

    def run(self) -> dict:
        """Return what was measured, by run."""
        few, many = f"budget.iterations={self.iterations}", f"budget.iterations={self.evaluations - 1}"
        return {
            "iterations": self._measured(few, "evaluation.every=1"),
            "evaluations": self._measured(many, f"evaluation.every={1 / (self.evaluations - 1)}"),
        }

    def _measured(self, *overrides: str) -> dict:
        self.samples, process, write = [], psutil.Process(), loop.Run._write

        def sampled(run: loop.Run, record) -> None:
            write(run, record)
            self.samples.append((process.memory_info().rss / 1e6, process.num_fds()))

        with tempfile.TemporaryDirectory() as root, patch.object(loop.Run, "_write", sampled):
            with initialize_config_dir(CONF, version_base="1.3"):
                cfg = compose("config", overrides=[*TINY, *overrides, f"runs_root={root}", "run_name=soak"])
            records = (loop.run(cfg, "soak") / "records.jsonl").read_text()
        return {"evaluations": records.count('"kind": "evaluation"'), **self._growth()}

    def _growth(self) -> dict:
        """Compare the last tenth of the samples with the tenth before the end of the first third, by their largest."""
        count = len(self.samples)
        before = self.samples[count // 3 - count // 10 : count // 3]
        after = self.samples[-(count // 10) :]
        memory_before, open_before = map(max, zip(*before, strict=True))
        memory_after, open_after = map(max, zip(*after, strict=True))
        return {
            "records": count,
            "memory_mb": round(memory_after, 1),
            "memory_growth_mb": round(memory_after - memory_before, 1),
            "descriptors": open_after,
            "descriptors_growth": open_after - open_before,
        }


def broken(measured: dict) -> list[str]:
    """Return the names of the runs that break a bound."""
    return [
        name for name, run in measured.items() if run["memory_growth_mb"] > GROWTH_MB or run["descriptors_growth"] > 0
    ]


def main() -> None:
    measured = Soak().run()
    print(json.dumps({**measured, "allowed_growth_mb": GROWTH_MB}, indent=1))
    sys.exit(1 if broken(measured) else 0)


if __name__ == "__main__":
    main()
