"""Give each phase of a run its own guidance: rollouts, training, evaluation. null is the model's."""

from typing import Any

from omegaconf import DictConfig

from flash_grpo.algorithm.protocols import Guidable, Policy
from flash_grpo.run.settings import PHASES, ConfigError
from flash_grpo.run.targets import located


def check_guidance(cfg: DictConfig) -> None:
    """Raise ConfigError if a phase asks for a guidance of its own and the model cannot have several."""
    for phase in PHASES:
        wanted = (cfg.get(phase) or {}).get("guidance")
        if wanted is not None and not hasattr(located(cfg.model._target_, "model"), "with_guidance"):
            raise ConfigError(
                f"{phase}.guidance={wanted}: {cfg.model._target_} has no with_guidance (algorithm/protocols.py), so all phases "
                "have the model's; leave it null"
            )


def guidance_of(cfg: DictConfig, phase: str) -> Any:
    """Return the phase's guidance; None of a model that has none. Configurations of earlier versions have the model's alone."""
    own = (cfg.get(phase) or {}).get("guidance")
    return cfg.model.get("guidance") if own is None else own


def guided(policy: Policy, cfg: DictConfig, phase: str) -> Policy:
    """Return the policy with the phase's guidance, all weights shared; the policy itself if it has that already."""
    wanted = guidance_of(cfg, phase)
    if wanted is None or not isinstance(policy, Guidable) or policy.guidance == wanted:
        return policy
    return policy.with_guidance(wanted)


def is_off_policy(cfg: DictConfig) -> bool:
    """Return True if rollouts are made with another guidance than they are trained with."""
    return guidance_of(cfg, "rollout") != guidance_of(cfg, "training")
