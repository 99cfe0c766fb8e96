"""Hold what an evaluation gives, and the statistics of its videos and rewards."""

from dataclasses import dataclass, field

import torch

from flash_grpo.algorithm.scoring import Kind
from flash_grpo.algorithm.types import Scores
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.score_checks import agreed_kind


@dataclass(frozen=True, kw_only=True)
class EvaluatedPart:
    """Some prompts, whole, as one rank has evaluated them: p prompts of K videos each."""

    prompt_p: tuple[int, ...]
    scores: Scores
    diversity_p: torch.Tensor
    base_distance_p: torch.Tensor
    shown: dict[str, torch.Tensor]
    """Videos to be shown, [F, H, W, 3] on the CPU, by text."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What P prompts, K videos each, were worth, over all ranks; the main rank's videos for a contact sheet, by text."""

    texts: tuple[str, ...]
    reward_PK: torch.Tensor
    part_PK: dict[str, torch.Tensor]
    diversity_P: torch.Tensor
    """Mean pairwise RMS distance between a prompt's videos, colours in [0, 1]; NaN of a single video."""

    base_distance_P: torch.Tensor
    """Mean squared difference of the velocity from the base model's, on the evaluation's own states."""

    videos: dict[str, torch.Tensor] = field(default_factory=dict)
    device_seconds: float = 0.0
    """What this rank's rewards cost elsewhere, see `Scores`."""

    @property
    def prompt_rewards(self) -> dict[str, float]:
        return dict(zip(self.texts, self.reward_PK.mean(1).tolist(), strict=True))

    @property
    def parts(self) -> dict[str, float]:
        return {name: float(value_PK.mean()) for name, value_PK in self.part_PK.items()}

    @property
    def mean(self) -> float:
        return float(self.reward_PK.mean())

    @property
    def diversity(self) -> float | None:
        """The mean over prompts; None where there is one video of each."""
        return None if self.reward_PK.shape[1] < 2 else float(self.diversity_P.mean())

    @property
    def base_distance(self) -> float:
        return float(self.base_distance_P.mean())

    @property
    def sem(self) -> float | None:
        """The standard error over prompts, the noises of one prompt averaged; None of a single prompt."""
        return standard_error(self.reward_PK.mean(1))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.sem is None else f" ± {self.sem:.3f}")


def joined(parts: list[EvaluatedPart], texts: tuple[str, ...], noises_per_prompt: int, ranks: Ranks) -> Evaluated:
    """Put all ranks' parts together; a matrix that is zero where a rank has nothing is summed, which is exact."""
    P, K = len(texts), noises_per_prompt
    names = agreed_kind(ranks, Kind.of(parts[0].scores) if parts else None).parts  # a rank without prompts knows none
    total_PK = torch.zeros(P, K)
    part_PK = {name: torch.zeros(P, K) for name in names}
    diversity_P, distance_P = torch.zeros(P), torch.zeros(P)
    for part in parts:
        rows = list(part.prompt_p)
        total_PK[rows] = part.scores.total_B.cpu().float().reshape(-1, K)
        for name in names:
            part_PK[name][rows] = part.scores.parts[name].cpu().float().reshape(-1, K)
        diversity_P[rows], distance_P[rows] = part.diversity_p, part.base_distance_p
    return Evaluated(
        texts=texts,
        reward_PK=ranks.sum(total_PK),
        part_PK={name: ranks.sum(value_PK) for name, value_PK in part_PK.items()},
        diversity_P=ranks.sum(diversity_P),
        base_distance_P=ranks.sum(distance_P),
        videos={text: video for part in parts for text, video in part.shown.items()},
        device_seconds=sum(part.scores.device_seconds for part in parts),
    )


def diversity(video_pKFHWC: torch.Tensor) -> torch.Tensor:
    """Return the mean over pairs of a prompt's K videos of their RMS distance, colours in [0, 1]: [p], NaN where K is 1."""
    K = video_pKFHWC.shape[1]
    if K == 1:
        return torch.full((len(video_pKFHWC),), torch.nan)
    pairs = [(a, b) for a in range(K) for b in range(a)]
    video = video_pKFHWC.flatten(2)
    distances = [((video[:, a].float() - video[:, b].float()) / 255).square().mean(1).sqrt() for a, b in pairs]
    return torch.stack(distances).mean(0)


def standard_error(value_P: torch.Tensor) -> float | None:
    """Return the standard error of the mean of independent values; None of a single one."""
    return float(value_P.std() / len(value_P) ** 0.5) if len(value_P) > 1 else None
