"""Register `hydra/launcher=local_bounded`, which runs a sweep on this machine, a few runs at a time.

The work is done in `flash_grpo.cluster.local`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

from flash_grpo.cluster.local import launch
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher


@dataclass
class LocalBoundedConf(LocalQueueConf):
    _target_: str = "hydra_plugins.flash_grpo_plugins.local.BoundedLocalLauncher"
    submitit_folder: str = "${hydra.sweep.dir}"  # each run's log goes to a folder of the run's name in here
    max_parallel: int | None = None  # runs at once; null: one per GPU, or one per core on a machine without GPUs
    timeout_min: int = 60 * 24 * 365  # budgets end runs, not this limit
    stderr_to_stdout: bool = True  # one log per run
    # a function (cfg, ranks) that raises ValueError if a point of the sweep could not begin; null: no rehearsal
    rehearse: str | None = "flash_grpo.run.rehearsal.rehearse"


ConfigStore.instance().store("local_bounded", LocalBoundedConf, group="hydra/launcher", provider="flash_grpo")


class BoundedLocalLauncher(LocalLauncher):
    """A Hydra launcher that runs a sweep on this machine; see `LocalBoundedConf` for the parameters."""

    def __init__(self, max_parallel: int | None = None, rehearse: str | None = None, **params: Any) -> None:
        super().__init__(**params)
        self.max_parallel, self.rehearse = max_parallel, rehearse

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return launch(self, job_overrides, initial_job_idx)
