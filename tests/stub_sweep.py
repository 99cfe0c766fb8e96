"""A program that the Slurm launcher can sweep over, whose runs need no torch: they write run.json, wait and are complete.

python tests/stub_sweep.py -m 'number=range(1000)' runs_root=/shared/runs seconds=1 hydra.launcher.cpus_per_task=1
"""

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flash_grpo.records.files import read_manifest, write_manifest
from flash_grpo.records.schema import TIME, ProgramStart, RunManifest
from flash_grpo.records.slurm_job import SlurmJob

DEFAULTS = ["_self_", {"override hydra/launcher": "slurm_resumable"}, {"override hydra/sweeper": "overridable"}]
SWEEP = {
    "run": {"dir": "."},
    "output_subdir": None,
    "sweep": {"dir": "${runs_root}/${study}/.submitit", "subdir": "."},
    "job_logging": {
        "version": 1,
        "root": {"level": "INFO", "handlers": ["c"]},
        "handlers": {"c": {"class": "logging.StreamHandler"}},
    },
    "launcher": {"rehearse": None, "files": [], "cpus_per_task": 1, "nodes": 1, "timeout_min": 5, "signal_delay_s": 30},
}


@dataclass
class Stub:
    """The configuration. number: what a sweep varies. seconds: how long a run takes."""

    defaults: list[Any] = field(default_factory=lambda: DEFAULTS)
    study: str = "study"
    runs_root: str = "runs"
    run_name: str = "run${number}"
    number: int = 0
    seconds: float = 0.0
    detach: bool = False
    hydra: dict[str, Any] = field(default_factory=lambda: SWEEP)


ConfigStore.instance().store("stub", Stub)


@hydra.main(version_base="1.3", config_path=None, config_name="stub")
def main(cfg: DictConfig) -> None:
    """Be a run: say that it runs, wait, say that it is complete."""
    directory = Path(cfg.runs_root) / cfg.study / cfg.run_name
    directory.mkdir(parents=True, exist_ok=True)
    job = SlurmJob.here()
    start = ProgramStart(
        time=time.strftime(TIME), host=platform.node(), pid=os.getpid(), slurm=job.variables if job else {}
    )
    earlier = read_manifest(directory)
    known = {"run_name": cfg.run_name, "study": cfg.study, "method": "stub", "model": "none", "seed": cfg.number}
    empty = {
        "config": {},
        "config_hash": "",
        "schedule": {},
        "schedule_hash": "",
        "git": None,
        "packages": {},
        "hardware": {},
    }
    manifest = RunManifest(**known, **empty, world_size=1, starts=[*(earlier.starts if earlier else []), start])
    write_manifest(directory, manifest)
    time.sleep(cfg.seconds)
    manifest.status = "completed"
    write_manifest(directory, manifest)


if __name__ == "__main__":
    main()
