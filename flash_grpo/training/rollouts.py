"""Make an iteration's rollouts and have them scored."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from flash_grpo.algorithm.denoise import Denoised, Denoising, Solver, denoise
from flash_grpo.algorithm.experts import experts_of
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.noise import NoiseKeys, noise_keys
from flash_grpo.algorithm.paths import WHOLE_GRID, Path, Route, on_places, routes
from flash_grpo.algorithm.protocols import Policy
from flash_grpo.algorithm.scoring import CheckedReward
from flash_grpo.algorithm.transitions import joined
from flash_grpo.algorithm.types import FlowSchedule, PromptBatch, Rollouts, Scores
from flash_grpo.training.awaited import AwaitedScores
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter


@dataclass(kw_only=True)
class RolloutMaker:
    """Makes the rollouts that a method plans, and asks for their scores.

    at_once: videos in one call of the policy, of the decoder and of the reward; bounds memory and does not change results.
    path: where on the grid the policy is evaluated.
    """

    policy: Policy
    reward: CheckedReward
    method: Method
    schedule: FlowSchedule
    solve: Solver
    seed: int
    at_once: int
    meter: Meter
    journal: Journal
    path: Path = WHOLE_GRID

    def scored(self, batch: PromptBatch) -> tuple[Rollouts, Scores]:
        """Return the batch's rollouts, without their videos, and scores. Rewards that others compute come in meanwhile."""
        parts = self.routes(batch)
        awaited = AwaitedScores(reward=self.reward, meter=self.meter, journal=self.journal)
        with self.meter.phase("rollout"):
            self.policy.prefetch(batch.text)
        with self.journal.section(self.keep_up):
            for index, part in enumerate(parts):
                rollouts = self._resumable(part, f"rollouts/{index}")
                with self.meter.phase("reward"):
                    awaited.ask(index, rollouts.video_BFHWC, part.batch.text)
                    self.journal.poll(awaited.take_in)
            with self.meter.phase("reward"):
                self.journal.wait(awaited.take_in)
        made = [self.journal.done[f"rollouts/{index}"] for index in range(len(parts))]
        return joined_rollouts(batch, made), awaited.joined(len(parts))

    def _resumable(self, part: Route, name: str) -> Rollouts:
        """Return the rollouts of a part, made now or in an earlier start of the run; those made now are charged."""
        with self.meter.phase("rollout", only_completed=True) as charge:
            return self.journal.resumable(name, partial(self.make, part, name, charge))

    def all(self, batch: PromptBatch) -> Rollouts:
        """Return the batch's rollouts with their videos; nothing is noted in the journal."""
        return joined_rollouts(batch, [self._on(route) for route in self.routes(batch)])

    def make(self, route: Route, name: str, charge: Callable[[], None]) -> Rollouts:
        """Return the rollouts of a route; its denoising is noted as `name`/denoising after each step."""

        def after_step(now: Denoising) -> None:
            self.journal.note(f"{name}/denoising", now)
            charge()

        resumed = self.journal.done.get(f"{name}/denoising")
        return self._on(route, after_step=after_step, resumed=resumed)

    def routes(self, batch: PromptBatch) -> list[Route]:
        """Return the batch's rollouts in the parts in which they are made, in order."""
        return routes(batch, self.method.plan(batch, len(self.schedule), self.seed), self.path, self.at_once)

    def _on(self, route: Route, **options: Any) -> Rollouts:
        condition_BMD = self.policy.encode(route.batch.text)
        return self.decoded(route.batch, condition_BMD, self.denoised(route, condition_BMD, **options))

    def denoised(self, route: Route, condition_BMD: torch.Tensor, **options: Any) -> Denoised:
        """Return the route's latents, and its trained steps told by the grid's own index. options: as of `denoise`."""
        keys = noise_keys(route.batch, self.seed, self.method.initial_noise, self.method.tree)
        schedule = on_places(self.schedule, route.place_S)
        made = self._denoised(condition_BMD, keys, schedule, route.mask_BT, **options)
        step_N = route.grid_step(made.transitions.step_N)
        return replace(made, transitions=replace(made.transitions, step_N=step_N))

    def by_keys(self, batch: PromptBatch, mask_BT: torch.Tensor, keys: NoiseKeys) -> Rollouts:
        """Return the batch's rollouts on the whole grid, by the given mask and noise."""
        condition_BMD = self.policy.encode(batch.text)
        return self.decoded(batch, condition_BMD, self._denoised(condition_BMD, keys, self.schedule, mask_BT))

    def _denoised(
        self,
        condition_BMD: torch.Tensor,
        keys: NoiseKeys,
        schedule: FlowSchedule,
        mask_BT: torch.Tensor,
        after_step: Callable[[Denoising], None] = lambda now: None,
        resumed: Denoising | None = None,
    ) -> Denoised:
        made = denoise(
            self.policy,
            condition_BMD,
            keys,
            schedule,
            mask_BT,
            needs=self.method.needs,
            solve=self.solve,
            at_once=self.at_once,
            before_velocity=lambda timestep: self.journal.leave_if_asked(int(experts_of(self.policy).of(timestep))),
            after_step=after_step,
            resumed=resumed,
        )
        self.meter.count(forwards=made.velocities * self.policy.evaluations_per_velocity)
        return made

    def decoded(self, batch: PromptBatch, condition_BMD: torch.Tensor, made: Denoised) -> Rollouts:
        """Decode what denoising made, and keep of it what the target needs."""
        with self.meter.phase("decode", only_completed=True):
            videos = [self.policy.decode(latent) for latent in made.latent_BCFHW.split(self.at_once)]
        self.meter.count(decodes=len(batch))
        x_0_BCFHW = made.latent_BCFHW if self.method.needs.x_0 else made.latent_BCFHW.new_empty(len(batch), 0)
        return Rollouts(
            batch=batch,
            condition_BMD=condition_BMD,
            video_BFHWC=torch.cat(videos),
            transitions=made.transitions.cpu(),  # an iteration's fill a GPU: method=full on 8 ranks makes 15 GB a rank
            x_0_BCFHW=x_0_BCFHW.cpu(),
        )

    @torch.no_grad()
    def keep_up(self, expert: int) -> None:
        """Take part in a velocity of other ranks by this expert, see `Journal.section`."""
        condition = self.policy.encode([""])
        x = torch.zeros(1, *self.policy.latent_shape).to(condition.device)
        self.policy.velocity(x, experts_of(self.policy).timestep(expert), condition)


def joined_rollouts(batch: PromptBatch, parts: list[Rollouts]) -> Rollouts:
    """Return the rollouts of the whole batch from those of its parts, in order."""
    first_rows = itertools.accumulate((len(part.batch) for part in parts), initial=0)
    transitions = [
        replace(part.transitions, rollout_N=part.transitions.rollout_N + first)
        for part, first in zip(parts, first_rows, strict=False)
    ]
    return Rollouts(
        batch=batch,
        condition_BMD=torch.cat([part.condition_BMD for part in parts]),
        video_BFHWC=torch.cat([part.video_BFHWC for part in parts]),
        transitions=joined(transitions, parts[0].transitions.x_SCFHW),
        x_0_BCFHW=torch.cat([part.x_0_BCFHW for part in parts]),
    )
