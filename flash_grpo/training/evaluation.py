"""Evaluation: one pinned sampler for every method, so that only the weights differ."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.denoise import Denoising, Solver, denoise
from flash_grpo.algorithm.noise import NoiseKeys
from flash_grpo.algorithm.protocols import Policy, Reward, ask
from flash_grpo.algorithm.solvers import euler
from flash_grpo.algorithm.types import FlowSchedule
from flash_grpo.training.evaluated import Evaluated, EvaluatedPart, diversity
from flash_grpo.training.journal import Journal
from flash_grpo.training.ranks import Ranks

CONTACT_SHEET_ROWS = 16
Keep = Callable[[str, int, torch.Tensor, float, dict[str, float]], None]
Timed = Callable[[], AbstractContextManager[Callable[[], None]]]


def untimed() -> AbstractContextManager[Callable[[], None]]:
    """Stand in for `Meter.phase` where nothing is to be charged."""
    return nullcontext(lambda: None)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Deterministic steps on `schedule` from noise that belongs to (seed, prompt, index): paired across runs.

    noises_per_prompt: K, videos per prompt. seed: of the evaluation noise, which training does not use. batch: videos in one
    call of the policy and of the decoder. solve: pinned here, whatever training's rollouts use.
    """

    schedule: FlowSchedule
    noises_per_prompt: int
    seed: int
    batch: int
    solve: Solver = euler

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        reward: Reward,
        texts: tuple[str, ...],
        ranks: Ranks,
        keep: Keep | None = None,
        journal: Journal | None = None,
        timed: Timed = untimed,
    ) -> Evaluated:
        """Make and score the videos of all texts, shared out to ranks by prompt.

        keep: is given each of this rank's videos as it is made: text, index, video, score, parts. journal: where a run that
        has to leave in the middle notes what is done. timed: around each part, see `Meter.phase`.
        """
        journal = journal or Journal(ranks, policy.forwards_together)
        mine = list(range(len(texts)))[ranks.rank :: ranks.world_size]
        size = max(1, self.batch // self.noises_per_prompt)
        policy.prefetch(texts[prompt] for prompt in mine)
        show = set(shown([texts[prompt] for prompt in mine])) if ranks.is_main else set()
        parts = []
        with journal.section(partial(self._keep_up, policy)):
            for index, first in enumerate(range(0, len(mine), size)):
                chosen, name = tuple(mine[first : first + size]), f"evaluation {index}"
                with timed() as charge:
                    work = partial(self._part, policy, reward, texts, chosen, show, keep, journal, name, charge)
                    parts.append(journal.resumable(name, work))
        journal.done.clear()
        return self._joined(parts, texts, ranks)

    def _part(
        self,
        policy: Policy,
        reward: Reward,
        texts: tuple[str, ...],
        prompt_p: tuple[int, ...],
        show: set[str],
        keep: Keep | None,
        journal: Journal,
        name: str,
        charge: Callable[[], None],
    ) -> EvaluatedPart:
        """Evaluate these prompts; their denoising is noted as `name`/denoising after each step."""
        K = self.noises_per_prompt
        text_B = tuple(texts[prompt] for prompt in prompt_p for _ in range(K))
        keys = NoiseKeys(initial_B=tuple((self.seed, "evaluation", text, row % K) for row, text in enumerate(text_B)))
        condition = policy.encode(text_B)
        asked_of = _States(keys, policy.latent_shape, len(self.schedule), journal.done.get(f"{name}/states"))

        def after_step(now: Denoising) -> None:
            asked_of.keep(now)
            journal.done[f"{name}/states"] = asked_of.x_BCFHW
            journal.note(f"{name}/denoising", now)
            charge()

        latent = denoise(
            policy,
            condition,
            keys,
            self.schedule,
            torch.zeros(len(text_B), len(self.schedule), dtype=torch.bool),
            solve=self.solve,
            at_once=self.batch,
            before_velocity=journal.leave_if_asked,
            after_step=after_step,
            resumed=journal.done.get(f"{name}/denoising"),
        ).latent_BCFHW
        video = torch.cat([policy.decode(part) for part in latent.split(self.batch)])
        asked = ask(reward, video, text_B)
        base_distance_B = self._base_distance(policy, condition, asked_of, journal)
        journal.wait(lambda: asked.ready() and asked.get() is not None)  # a reward that failed raises here
        scores = asked.get()
        if keep is not None:
            for row, text in enumerate(text_B):
                named = {part: float(part_B[row]) for part, part_B in scores.parts.items()}
                keep(text, row % K, video[row].cpu(), float(scores.total_B[row]), named)
        return EvaluatedPart(
            prompt_p=prompt_p,
            scores=scores,
            diversity_p=diversity(video.unflatten(0, (-1, K))),
            base_distance_p=base_distance_B.reshape(-1, K).mean(1),
            # copies: a view would keep the whole batch
            shown={
                text_B[row]: video[row].to("cpu", copy=True) for row in range(0, len(text_B), K) if text_B[row] in show
            },
        )

    def _base_distance(
        self, policy: Policy, condition: torch.Tensor, states: "_States", journal: Journal
    ) -> torch.Tensor:
        """Return each video's mean squared velocity difference from the base, at one state of its denoising [B]."""
        x, timestep_B, found = states.x_BCFHW.to(condition.device), self.schedule.timestep_T[states.step_B], []
        for rows in torch.arange(len(x)).split(self.batch):
            arguments = x[rows], timestep_B[rows], condition[rows]
            journal.leave_if_asked()
            change = policy.velocity(*arguments)
            journal.leave_if_asked()  # once for each velocity: ranks that keep up compute one a vote
            change = change - policy.base_velocity(*arguments)
            found.append(change.square().flatten(1).mean(1))
        return torch.cat(found).cpu()

    def _keep_up(self, policy: Policy) -> None:
        condition = policy.encode([""])
        x = torch.zeros(1, *policy.latent_shape).to(condition.device)
        policy.velocity(x, self.schedule.timestep_T[:1], condition)

    def _joined(self, parts: list[EvaluatedPart], texts: tuple[str, ...], ranks: Ranks) -> Evaluated:
        """Put all ranks' parts together; a matrix that is zero where a rank has nothing is summed, which is exact."""
        P, K = len(texts), self.noises_per_prompt
        names = ranks.from_main(list(parts[0].scores.parts) if parts else [])  # a rank without prompts knows none
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


class _States:
    """One state of each video's denoising, at a step that the noise's key draws: over the videos every step counts alike,
    for one velocity of each model more."""

    def __init__(self, keys: NoiseKeys, shape: tuple[int, ...], num_steps: int, known: torch.Tensor | None):
        self.step_B = torch.tensor([keyed.integer(0, num_steps - 1, *key, "distance") for key in keys.initial_B])
        if known is None:
            known = torch.stack([keyed.normal(shape, *key) for key in keys.initial_B])
        self.x_BCFHW = known.cpu()

    def keep(self, now: Denoising) -> None:
        rows = (self.step_B == now.step).nonzero().flatten()
        self.x_BCFHW[rows] = now.x_SCFHW[now.state_B[rows]].to("cpu")


def shown(texts: list[str]) -> list[str]:
    """Return the texts that get a row in the contact sheet: at most CONTACT_SHEET_ROWS, evenly spaced."""
    rows = torch.linspace(0, len(texts) - 1, min(CONTACT_SHEET_ROWS, len(texts))).round().long()
    return [texts[row] for row in rows.tolist()]
