"""Register `hydra/sweeper=overridable`: the command line's values of a key replace those of the file in `sweeps/`.

Hydra's basic sweeper multiplies the two: `sweeps=ablation seed=0,1` would run every seed of the file twice.
"""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore

from flash_grpo.cluster.points import kept_params


@dataclass
class OverridableConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.flash_grpo_plugins.sweeper.OverridableSweeper"


ConfigStore.instance().store("overridable", OverridableConf, group="hydra/sweeper", provider="flash_grpo")


class OverridableSweeper(BasicSweeper):
    """A sweeper in which the command line's values of a key replace those of the file in `sweeps/`."""

    def sweep(self, arguments: list[str]) -> Any:
        """Sweep over the command line's keys and those of the file that the command line does not name."""
        self.params = kept_params(self.params, arguments)
        return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Skip Hydra's check, 0.1 s a point: the launchers compose every point before they start one."""
