"""Hold what an evaluation gives, and the statistics of its videos and rewards."""

from collections.abc import Sequence
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

    held_out: Scores | None = None
    """The held-out reward's scores; None if there is no such reward."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a reward gave the videos of P prompts, K videos each, over all ranks."""

    texts: tuple[str, ...]
    reward_PK: torch.Tensor
    part_PK: dict[str, torch.Tensor]

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
    def sem(self) -> float | None:
        """The standard error over prompts, the noises of one prompt averaged; None of a single prompt."""
        return standard_error(self.reward_PK.mean(1))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.sem is None else f" ± {self.sem:.3f}")


@dataclass(frozen=True, kw_only=True)
class Evaluated(Judged):
    """What P prompts, K videos each, were worth, over all ranks; the main rank's videos for a contact sheet, by text."""

    diversity_P: torch.Tensor
    """Mean pairwise RMS distance between a prompt's videos, colours in [0, 1]; NaN of a single video."""

    base_distance_P: torch.Tensor
    """Mean squared difference of the velocity from the base model's, on the evaluation's own states."""

    held_out: Judged | None = None
    """The same videos by the reward that never trains; None if there is no such reward."""

    videos: dict[str, torch.Tensor] = field(default_factory=dict)
    device_seconds: float = 0.0
    """What this rank's rewards cost elsewhere, see `Scores`."""

    @property
    def diversity(self) -> float | None:
        """The mean over prompts; None where there is one video of each."""
        return None if self.reward_PK.shape[1] < 2 else float(self.diversity_P.mean())

    @property
    def base_distance(self) -> float:
        return float(self.base_distance_P.mean())

    def __str__(self) -> str:
        return super().__str__() + ("" if self.held_out is None else f", held out {self.held_out}")


def joined(
    parts: list[EvaluatedPart], texts: tuple[str, ...], noises_per_prompt: int, ranks: Ranks, has_held_out: bool
) -> Evaluated:
    """Put all ranks' parts together; a matrix that is zero where a rank has nothing is summed, which is exact.

    has_held_out: whether there is a held-out reward, which a rank without prompts cannot tell from its parts.
    """
    rows = [list(part.prompt_p) for part in parts]
    judged = _judged(rows, [part.scores for part in parts], texts, noises_per_prompt, ranks)
    held_out = [part.held_out for part in parts if part.held_out is not None]
    diversity_P, distance_P = torch.zeros(len(texts)), torch.zeros(len(texts))
    for row, part in zip(rows, parts, strict=True):
        diversity_P[row], distance_P[row] = part.diversity_p, part.base_distance_p
    return Evaluated(
        **vars(judged),
        diversity_P=ranks.sum(diversity_P),
        base_distance_P=ranks.sum(distance_P),
        held_out=_judged(rows, held_out, texts, noises_per_prompt, ranks) if has_held_out else None,
        videos={text: video for part in parts for text, video in part.shown.items()},
        device_seconds=sum(scores.device_seconds for scores in (*(part.scores for part in parts), *held_out)),
    )


def _judged(
    rows: list[list[int]], scores: Sequence[Scores], texts: tuple[str, ...], noises_per_prompt: int, ranks: Ranks
) -> Judged:
    """Put all ranks' scores of one reward together. rows: the prompts of each of this rank's scores."""
    P, K = len(texts), noises_per_prompt
    names = agreed_kind(ranks, Kind.of(scores[0]) if scores else None).parts  # a rank without prompts knows none
    total_PK = torch.zeros(P, K)
    part_PK = {name: torch.zeros(P, K) for name in names}
    for row, some in zip(rows, scores, strict=True):
        total_PK[row] = some.total_B.cpu().float().reshape(-1, K)
        for name in names:
            part_PK[name][row] = some.parts[name].cpu().float().reshape(-1, K)
    summed = {name: ranks.sum(value_PK) for name, value_PK in part_PK.items()}
    return Judged(texts=texts, reward_PK=ranks.sum(total_PK), part_PK=summed)


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
