"""Evaluate some prompts on one rank: make their videos, score them, measure their diversity and the distance from the base."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.denoise import Denoising, Solver, denoise
from flash_grpo.algorithm.experts import experts_of
from flash_grpo.algorithm.noise import NoiseKeys
from flash_grpo.algorithm.protocols import Policy, Reward
from flash_grpo.algorithm.scoring import ask
from flash_grpo.algorithm.types import FlowSchedule, Scores
from flash_grpo.training.evaluated import EvaluatedPart, diversity
from flash_grpo.training.journal import Journal

Keep = Callable[[str, int, torch.Tensor, float, dict[str, float]], None]


class Sampler(Protocol):
    """What an evaluation pins, see `Evaluation`."""

    @property
    def schedule(self) -> FlowSchedule: ...
    @property
    def noises_per_prompt(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def solve(self) -> Solver: ...


@dataclass(frozen=True)
class PartEvaluator:
    """Evaluates parts of `texts`.

    held_out: a reward that never trains, asked for the same videos. show: the texts whose first video is kept, to be shown.
    """

    sampler: Sampler
    policy: Policy
    reward: Reward
    held_out: Reward | None
    texts: tuple[str, ...]
    show: frozenset[str]
    keep: Keep | None
    journal: Journal

    def part(self, prompt_p: tuple[int, ...], name: str, charge: Callable[[], None]) -> EvaluatedPart:
        """Evaluate these prompts; their denoising is noted as `name`/denoising after each step, and charged."""
        K = self.sampler.noises_per_prompt
        text_B = tuple(self.texts[prompt] for prompt in prompt_p for _ in range(K))
        condition = self.policy.encode(text_B)
        latent, states = self._denoised(text_B, condition, name, charge)
        video = torch.cat([self.policy.decode(part) for part in latent.split(self.sampler.batch)])
        asked = [ask(reward, video, text_B) for reward in (self.reward, self.held_out) if reward is not None]
        base_distance_B = self._base_distance(condition, states)
        self.journal.wait(
            lambda: all(answer.ready() and answer.get() is not None for answer in asked)
        )  # a failed one raises
        scores, *held_out = [answer.get() for answer in asked]
        self._keep(text_B, video, scores)
        rows = [row for row in range(0, len(text_B), K) if text_B[row] in self.show]
        return EvaluatedPart(
            prompt_p=prompt_p,
            scores=scores,
            diversity_p=diversity(video.unflatten(0, (-1, K))),
            base_distance_p=base_distance_B.reshape(-1, K).mean(1),
            shown={text_B[row]: video[row].to("cpu", copy=True) for row in rows},  # a view would keep the whole batch
            held_out=held_out[0] if held_out else None,
        )

    def keep_up(self, expert: int) -> None:
        """Take part in one velocity of other ranks, by this expert."""
        condition = self.policy.encode([""])
        x = torch.zeros(1, *self.policy.latent_shape).to(condition.device)
        self.policy.velocity(x, experts_of(self.policy).timestep(expert), condition)

    def _denoised(
        self, text_B: tuple[str, ...], condition: torch.Tensor, name: str, charge: Callable[[], None]
    ) -> tuple[torch.Tensor, "_States"]:
        sampler, K = self.sampler, self.sampler.noises_per_prompt
        keys = NoiseKeys(
            initial_B=tuple((sampler.seed, "evaluation", text, row % K) for row, text in enumerate(text_B))
        )
        known = self.journal.done.get(f"{name}/states")
        states = _States(keys, self.policy.latent_shape, len(sampler.schedule), known)

        def after_step(now: Denoising) -> None:
            states.keep(now)
            self.journal.done[f"{name}/states"] = states.x_BCFHW
            self.journal.note(f"{name}/denoising", now)
            charge()

        denoised = denoise(
            self.policy,
            condition,
            keys,
            sampler.schedule,
            torch.zeros(len(text_B), len(sampler.schedule), dtype=torch.bool),
            solve=sampler.solve,
            at_once=sampler.batch,
            before_velocity=lambda timestep: self.journal.leave_if_asked(int(experts_of(self.policy).of(timestep))),
            after_step=after_step,
            resumed=self.journal.done.get(f"{name}/denoising"),
        )
        return denoised.latent_BCFHW, states

    def _base_distance(self, condition: torch.Tensor, states: "_States") -> torch.Tensor:
        """Return each video's mean squared velocity difference from the base, at one state of its denoising [B]."""
        x, timestep_B = states.x_BCFHW.to(condition.device), self.sampler.schedule.timestep_T[states.step_B]
        experts, distance_B = experts_of(self.policy), torch.empty(len(x))
        for rows in experts.rows(timestep_B, self.sampler.batch):
            arguments, expert = (x[rows], timestep_B[rows], condition[rows]), int(experts.of(timestep_B[rows[0]]))
            self.journal.leave_if_asked(expert)
            change = self.policy.velocity(*arguments)
            self.journal.leave_if_asked(expert)  # once for each velocity: ranks that keep up compute one a vote
            change = change - self.policy.base_velocity(*arguments)
            distance_B[rows] = change.square().flatten(1).mean(1).cpu()
        return distance_B

    def _keep(self, text_B: tuple[str, ...], video: torch.Tensor, scores: Scores) -> None:
        if self.keep is None:
            return
        for row, text in enumerate(text_B):
            parts = {name: float(part_B[row]) for name, part_B in scores.parts.items()}
            self.keep(text, row % self.sampler.noises_per_prompt, video[row].cpu(), float(scores.total_B[row]), parts)


class _States:
    """One state of each video's denoising, at a step that the noise's key draws: over the videos every step counts alike,
    for one velocity of each model more."""

    def __init__(self, keys: NoiseKeys, shape: tuple[int, ...], num_steps: int, known: torch.Tensor | None):
        self.step_B = torch.tensor([keyed.integer(0, num_steps - 1, *key, "distance") for key in keys.initial_B])
        if known is None:
            known = keyed.normals(shape, keys.initial_B)
        self.x_BCFHW = known.cpu()

    def keep(self, now: Denoising) -> None:
        """Keep the states of those videos whose drawn step is the next one."""
        rows = (self.step_B == now.step).nonzero().flatten()
        self.x_BCFHW[rows] = now.x_SCFHW[now.state_B[rows]].to("cpu")
