"""Hold what a preflight measured, in place of a plan's assumed prices."""

from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flash_grpo.planning.scoring import Scoring
from flash_grpo.planning.unit_prices import UnitPrices


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Prices of one model on the very devices. score_seconds: of one video on one device; None where it was not measured.

    disk_speed: GB/s with which all ranks write a checkpoint. like: the settings of the model and its LoRA; runs with others
    keep their assumed prices.
    """

    prices: UnitPrices
    score_seconds: float | None
    disk_speed: float
    source: str
    like: Any

    def is_of(self, cfg: DictConfig) -> bool:
        """Return True if a run of this configuration computes with the model that was measured."""
        return settings_of_model(cfg) == self.like

    def scoring(self, assumed: Scoring) -> Scoring:
        """Return how a reward scores, with the seconds that were measured."""
        if self.score_seconds is None:
            return assumed
        source = f"{', '.join(assumed.networks) or 'reward'}: {self.score_seconds:.4g} s a video, {self.source}"
        return replace(assumed, seconds=self.score_seconds, unpriced=(), sources=(source,))


def settings_of_model(cfg: DictConfig) -> Any:
    """Return the settings that decide what a model's work costs, as plain values: its own, and its LoRA's but for the seed."""
    model, lora = OmegaConf.to_container(cfg.model, resolve=True), cfg.optim.lora
    return model, lora and {key: value for key, value in _plain(lora).items() if key != "seed"}


def _plain(node: DictConfig) -> dict[str, Any]:
    return {str(key): value for key, value in OmegaConf.to_container(node, resolve=True).items()}  # type: ignore[union-attr]
