"""Evaluation: one pinned sampler for every method, so that only the weights differ."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.denoise import denoise, no_noise
from flash_grpo.algorithm.protocols import Policy, Reward, ask
from flash_grpo.algorithm.types import FlowSchedule, Scores
from flash_grpo.training.journal import Journal
from flash_grpo.training.ranks import Ranks

CONTACT_SHEET_ROWS = 16
Keep = Callable[[str, int, torch.Tensor, float, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Deterministic Euler steps on `schedule` from noise that belongs to (seed, prompt, index): paired across runs.

    noises_per_prompt: videos per prompt. seed: of the evaluation noise, none of the training's. batch: videos at once.
    """

    schedule: FlowSchedule
    noises_per_prompt: int
    seed: int
    batch: int

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        reward: Reward,
        texts: tuple[str, ...],
        ranks: Ranks,
        keep: Keep | None = None,
        journal: Journal | None = None,
        timed: Callable[[], AbstractContextManager] = nullcontext,
    ) -> "Evaluated":
        """`keep(text, index, video, score, parts)` is given each of this rank's videos as it is made.

        journal: where a run that has to leave in the middle notes what is done. timed: around each micro-batch.
        """
        journal = journal or Journal(ranks)
        jobs = [(prompt, index) for prompt in range(len(texts)) for index in range(self.noises_per_prompt)]
        mine = jobs[ranks.rank :: ranks.world_size]
        policy.prefetch(texts[prompt] for prompt, _ in mine)
        show = shown([texts[prompt] for prompt, index in mine if index == 0]) if ranks.is_main else []

        def work(chunk: list[tuple[int, int]]) -> tuple[Scores | None, dict[str, torch.Tensor]]:
            """The scores of the chunk's videos, and those to be shown."""
            video, scores = self._scored(policy, reward, texts, chunk, journal)
            for row, (prompt, index) in enumerate(chunk if keep else []):
                told = {name: float(part_B[row]) for name, part_B in scores.parts.items()}
                keep(texts[prompt], index, video[row].cpu(), float(scores.total_B[row]), told)
            rows = {texts[prompt]: row for row, (prompt, index) in enumerate(chunk) if index == 0}
            # copies: a view would keep the whole batch
            return scores, {text: video[row].to("cpu", copy=True) for text, row in rows.items() if text in show}

        total = torch.zeros(len(texts), self.noises_per_prompt)
        parts: dict[str, torch.Tensor] = {}
        videos, device_seconds = {}, 0.0
        for start in range(0, -(-len(jobs) // ranks.world_size), self.batch):
            chunk = mine[start : start + self.batch]
            with timed():
                scores, to_show = journal.once(f"evaluation {start}", partial(work, chunk))
            videos |= to_show
            if scores:
                prompt_B, index_B = torch.tensor(chunk).T
                total[prompt_B, index_B] = scores.total_B.cpu()
                device_seconds += scores.device_seconds
                for name, part_B in scores.parts.items():
                    parts.setdefault(name, torch.zeros_like(total))[prompt_B, index_B] = part_B.cpu()
        journal.done.clear()
        names = ranks.from_main(list(parts))  # a rank with no videos of its own knows none
        part_PK = {name: ranks.sum(parts.get(name, torch.zeros_like(total))) for name in names}
        return Evaluated(
            reward_PK=ranks.sum(total), part_PK=part_PK, texts=texts, videos=videos, device_seconds=device_seconds
        )

    def _scored(
        self, policy: Policy, reward: Reward, texts: tuple[str, ...], chunk: list[tuple[int, int]], journal: Journal
    ) -> tuple[torch.Tensor | None, Scores | None]:
        """The chunk's videos and their scores. A rank that has none left takes part in what the others do together."""
        if not chunk:
            if policy.forwards_together:
                self._videos(policy, texts, [(0, 0)], journal)
            else:
                for _ in range(len(self.schedule)):
                    journal.leave_if_asked()
            journal.wait(lambda: True)
            return None, None
        video = self._videos(policy, texts, chunk, journal)
        asked = ask(reward, video, tuple(texts[prompt] for prompt, _ in chunk))
        journal.wait(lambda: asked.ready() and asked.get() is not None)  # one that failed says so here
        return video, asked.get()

    def _videos(
        self, policy: Policy, texts: tuple[str, ...], chunk: list[tuple[int, int]], journal: Journal
    ) -> torch.Tensor:
        chosen = tuple(texts[prompt] for prompt, _ in chunk)
        noise = [keyed.normal(policy.latent_shape, self.seed, "evaluation", texts[p], index) for p, index in chunk]
        condition = policy.encode(chosen)
        mask_BT = torch.zeros(len(chunk), len(self.schedule), dtype=torch.bool)
        x = torch.stack(noise).to(condition.device)
        latent, _ = denoise(policy, condition, x, self.schedule, mask_BT, no_noise, journal.leave_if_asked)
        return policy.decode(latent)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Rewards and their parts by prompt and noise [P, K], of all ranks; the main rank's videos
    [F, H, W, 3] for a contact sheet, on the CPU, by text.

    device_seconds: what this rank's rewards cost elsewhere, see `Scores`.
    """

    reward_PK: torch.Tensor
    part_PK: dict[str, torch.Tensor]
    texts: tuple[str, ...]
    videos: dict[str, torch.Tensor]
    device_seconds: float = 0.0

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
        """Standard error over prompts, the noises of one prompt averaged; None of a single prompt."""
        return standard_error(self.reward_PK.mean(1))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.sem is None else f" ± {self.sem:.3f}")


def standard_error(value_P: torch.Tensor) -> float | None:
    """Of the mean of independent values; None of a single one."""
    return float(value_P.std() / len(value_P) ** 0.5) if len(value_P) > 1 else None


def shown(texts: list[str]) -> list[str]:
    """Those of the texts that have a row of a contact sheet: at most CONTACT_SHEET_ROWS, evenly spaced."""
    return [
        texts[index] for index in torch.linspace(0, len(texts) - 1, min(CONTACT_SHEET_ROWS, len(texts))).round().long()
    ]
