"""Say which of a policy's transformers computes a timestep: one for all of them, or one for high noise and one for low."""

from dataclasses import dataclass
from typing import Any

import torch

HIGHEST = 1000  # the timestep of pure noise


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The transformers of a policy, by name, from high noise to low.

    boundary: the first expert computes timesteps from it on, the second one those below; None where there is one expert.
    Source: Wan2.2-A14B, and diffusers' `WanPipeline`, whose `boundary_ratio` it is times 1000.
    """

    names: tuple[str, ...] = ("transformer",)
    boundary: float | None = None

    def __len__(self) -> int:
        return len(self.names)

    def of(self, timestep_N: torch.Tensor) -> torch.Tensor:
        """Return the index of the expert that computes each timestep [N]."""
        low_N = torch.zeros_like(timestep_N) if self.boundary is None else timestep_N < self.boundary
        return low_N.long()

    def rows(self, timestep_N: torch.Tensor, at_once: int) -> list[torch.Tensor]:
        """Cut the rows into batches of at most `at_once`, each of one expert: in order, high noise before low."""
        expert_N = self.of(timestep_N)
        of_each = [(expert_N == expert).nonzero().flatten() for expert in range(len(self))]
        return [rows for mine in of_each if len(mine) for rows in mine.split(at_once)]

    def timestep(self, expert: int) -> torch.Tensor:
        """Return a timestep of this expert [1], for a rank that only keeps up with the others."""
        return torch.tensor([0 if expert else HIGHEST])


ONE = Experts()


def high_and_low(boundary: float) -> Experts:
    """Return two experts under diffusers' names; boundary: the share of the timesteps at which high noise ends, in (0, 1)."""
    return Experts(names=("transformer", "transformer_2"), boundary=HIGHEST * boundary)


def experts_of(policy: Any) -> Experts:
    """Return the policy's experts; a policy that names none has one transformer."""
    return getattr(policy, "experts", ONE)
