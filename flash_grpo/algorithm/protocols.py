"""State what is asked of a video model that is trained, and of a reward."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from flash_grpo.algorithm.types import Scores, UnitFlops


@runtime_checkable
class Policy(Protocol):
    """A velocity field over latents, with its text encoder and its decoder.

    latent_shape: (C, F, H, W). evaluations_per_velocity: transformer forwards per sample, 2 with classifier-free guidance.
    flops: of each kind of work on one sample. forwards_together: `velocity` needs all ranks, which must
    call it, and go backward through it, equally often and by the same expert.
    A policy of several transformers also has `experts`, see `algorithm.experts`; all timesteps of one call are of one of
    them, and the names in `trainable` begin with the expert's and a dot.
    """

    latent_shape: tuple[int, ...]
    evaluations_per_velocity: int
    flops: UnitFlops
    forwards_together: bool

    def encode(self, texts: Iterable[str]) -> torch.Tensor:
        """Return the text condition [B, M, D]."""

    def prefetch(self, texts: Iterable[str]) -> None:
        """Hear of all texts that `encode` will be asked for soon, so that an encoder need not come and go for each."""

    def velocity(self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor) -> torch.Tensor:
        """Return float32 [B, C, F, H, W], guidance applied."""

    def base_velocity(
        self, x_BCFHW: torch.Tensor, timestep_B: torch.Tensor, condition_BMD: torch.Tensor
    ) -> torch.Tensor:
        """Return the same of the model before any training; `keep_base` must have been called."""

    def keep_base(self) -> None:
        """Keep the present weights for `base_velocity`; called before any training."""

    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        """Return videos, uint8 [B, F, H, W, 3], on the CPU."""

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that training changes, by name."""

    def export(self, folder: Path, parameters: dict[str, torch.Tensor]) -> None:
        """Write these values of `trainable()` as the model's own pipeline loads them."""


@runtime_checkable
class Guidable(Protocol):
    """A policy whose guidance can differ between rollouts, training and evaluation; others have one for all."""

    guidance: float

    def with_guidance(self, guidance: float) -> Policy:
        """Return the same policy, all weights shared, with another guidance scale; `keep_base` is called before."""


class RewardError(RuntimeError):
    """A reward cannot be trained on, or cannot be had. The run stops; its last checkpoint stays."""


class Reward(Protocol):
    """Scores B videos, uint8 [B, F, H, W, 3], against B texts; higher is better. `scoring.ask` checks what it returns."""

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores: ...


class Asked(Protocol):
    """Scores that are on their way."""

    def ready(self) -> bool: ...

    def get(self) -> Scores:
        """Wait for the scores. RewardError where there are none to be had."""


def score_flops(reward: Reward, video_shape: tuple[int, ...], text: str) -> float:
    """Return the FLOPs of scoring one video, (F, H, W, 3), against a text; 0 for a reward that has no `flops` of its own.

    A reward that is not a network has none, and one on a server does not know its own.
    """
    return reward.flops(video_shape, text) if hasattr(reward, "flops") else 0.0
