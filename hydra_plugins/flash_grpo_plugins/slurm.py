"""Register `hydra/launcher=slurm_resumable`, which runs a sweep as a Slurm job array that can be trusted with days.

What it adds to hydra-submitit-launcher:
- A run that fails on any rank is FAILED in Slurm.
- A run that is preempted or reaches its time limit saves, is requeued and goes on.
- Every start runs the code and configuration that were submitted.
- The launcher waits for all runs and names every failure or, with `detach=true`, writes the job ids and returns.

The work is done in `flash_grpo.cluster.launch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn

from flash_grpo.cluster.launch import launch
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher


@dataclass
class SlurmResumableConf(SlurmQueueConf):
    _target_: str = "hydra_plugins.flash_grpo_plugins.slurm.ResumableSlurmLauncher"
    submitit_folder: str = "${hydra.sweep.dir}/%j"
    name: str = "${study}"
    # what differs between sites; or hydra.launcher.partition=... on the command line
    account: str | None = "${oc.env:FLASH_GRPO_ACCOUNT,null}"
    partition: str | None = "${oc.env:FLASH_GRPO_PARTITION,null}"
    constraint: str | None = "${oc.env:FLASH_GRPO_CONSTRAINT,null}"
    qos: str | None = "${oc.env:FLASH_GRPO_QOS,null}"
    gpus_per_node: Any = None  # a number, one for each rank; Any, so that `a100:8` is refused with a hint
    gpu_type: str | None = "${oc.env:FLASH_GRPO_GPU_TYPE,null}"  # a100, as Slurm calls it; null: any
    gpu_option: str = (
        "${oc.env:FLASH_GRPO_GPU_OPTION,gpus_per_node}"  # the option of sbatch that asks for GPUs; or gres
    )
    timeout_min: int = 24 * 60  # of one start; a run goes on in the next start
    signal_delay_s: int = 300  # how long before the time limit the run is asked to save
    stderr_to_stdout: bool = True  # one log per rank
    additional_parameters: dict[str, Any] = field(default_factory=lambda: {"requeue": True})
    srun_args: list[str] = field(default_factory=lambda: ["--kill-on-bad-exit=1", "--wait=0"])
    detach: bool = "${oc.select:detach,false}"  # submit and return at once
    # a function (cfg, ranks) that raises ValueError if a point of the sweep could not begin; null: no rehearsal
    rehearse: str | None = "flash_grpo.run.rehearsal.rehearse"
    # keys of the configuration that name files which a run reads; the files are copied at submission
    files: list[str] = field(default_factory=lambda: ["prompts.train", "prompts.test"])


ConfigStore.instance().store("slurm_resumable", SlurmResumableConf, group="hydra/launcher", provider="flash_grpo")


class ResumableSlurmLauncher(SlurmLauncher):
    """A Hydra launcher that runs a sweep on Slurm; see `SlurmResumableConf` for the parameters."""

    def __init__(
        self, detach: bool = False, rehearse: str | None = None, files: Sequence[str] = (), **params: Any
    ) -> None:
        super().__init__(**params)
        self.detach, self.rehearse, self.files = detach, rehearse, tuple(files)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return launch(self, job_overrides, initial_job_idx)
