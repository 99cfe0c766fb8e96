"""Go through a run before it starts: how many iterations its budget buys, when it evaluates, what that takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from flash_grpo.algorithm.cost import Counts
from flash_grpo.planning.counts import added, times
from flash_grpo.planning.model import Model
from flash_grpo.planning.scoring import Scoring
from flash_grpo.planning.unit_prices import UnitPrices
from flash_grpo.records.schema import Cost
from flash_grpo.run import build
from flash_grpo.run.progress import Budget

MOST = 1_000_000  # iterations of a run that are gone through


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a run's budget buys. counts: of all its iterations. evaluations: those at the start and the end included."""

    iterations: int
    evaluations: int
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class Work:
    """What work costs a run. kl: whether an update also evaluates the base."""

    model: Model
    prices: UnitPrices
    scoring: Scoring
    kl: bool

    @property
    def velocity(self) -> float:
        """Return the seconds of one of the rollouts' velocities."""
        return self.model.evaluations_per_velocity * self.prices.forward.seconds

    @property
    def replayed(self) -> float:
        """Return the seconds of one of training's velocities without gradient."""
        return self.model.training_evaluations * self.prices.forward.seconds

    @property
    def update(self) -> float:
        """Return the seconds of training one state: forward, recomputed forward, backward, and the base's where it is asked."""
        trained = self.prices.forward.seconds + self.prices.recompute.seconds + self.prices.backward.seconds
        return self.model.training_evaluations * trained + self.kl * self.replayed

    def phases(self, counts: Counts) -> dict[str, float]:
        """Return the device-seconds of each phase, summed over devices."""
        return {
            "rollout": counts.rollout_velocities * self.velocity,
            "decode": counts.videos * self.prices.decode.seconds,
            "reward": counts.videos * self.scoring.seconds,
            "update": counts.trained_states * self.update + counts.old_velocities * self.replayed,
        }

    def pflop(self, counts: Counts) -> float:
        """Return the transformer's PFLOP, the budget's unit."""
        model = self.model
        return counts.pflop(model.evaluations_per_velocity, model.flops, self.kl, model.training_evaluations)

    def forwards(self, counts: Counts) -> float:
        """Return the transformer's forwards."""
        return counts.forwards(self.model.evaluations_per_velocity, self.kl, self.model.training_evaluations)


def spent(cfg: DictConfig, work: Work, iterations: Iterator[Counts]) -> Spent:
    """Go through the iterations as `run.loop.Run` does, until the budget is spent."""
    budget: Budget = build.build(cfg.budget, "budget", Budget)
    every, before, evaluations, parts = cfg.evaluation.every, 0.0, 1, list[Counts]()
    seconds = pflop = 0.0
    for counts in iterations:
        parts.append(counts)
        seconds, pflop = seconds + sum(work.phases(counts).values()), pflop + work.pflop(counts)
        now = budget.spent(len(parts), Cost(device_seconds=seconds, pflop=pflop))
        if now >= 1 or len(parts) == MOST:
            break
        evaluations += int(now / every + 1e-9) > int(before / every + 1e-9)
        before = now
    same = all(part is parts[0] for part in parts)
    total = times(parts[0], len(parts)) if same else added(parts)
    return Spent(iterations=len(parts), evaluations=evaluations + 1, counts=total)


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """What one evaluation takes. velocities: of one video, its denoising and two for its distance from the base.

    held_out_seconds: of a reward that never trains, for one video.
    """

    prompts: int
    noises: int
    velocities: int
    held_out_seconds: float = 0.0

    @property
    def videos(self) -> int:
        return self.prompts * self.noises

    def pflop(self, work: Work) -> float:
        """Return the PFLOP of transformer and decoder of one evaluation."""
        model = work.model
        forwards = self.velocities * model.evaluation_evaluations
        return 1e-15 * self.videos * (forwards * model.flops.forward + model.flops.decode)

    def wall(self, work: Work, ranks: int) -> float:
        """Return the seconds of one evaluation. Prompts are shared out whole: the slowest rank has ceil(prompts / ranks).

        A rank waits for the scores of each of its parts; with fewer servers than ranks the scores queue.
        """
        queue = max(1.0, ranks / work.scoring.servers) if work.scoring.servers else 1.0
        velocity = work.model.evaluation_evaluations * work.prices.forward.seconds
        score = queue * work.scoring.seconds + self.held_out_seconds
        video = self.velocities * velocity + work.prices.decode.seconds + score
        return math.ceil(self.prompts / ranks) * self.noises * video


def wall_of_iteration(work: Work, counts: Counts, ranks: int) -> float:
    """Return the seconds of one iteration. The ranks share all work evenly; servers score while rollouts are made.

    With servers the ranks wait for what scoring takes longer than making the videos.
    """
    phases, servers = work.phases(counts), work.scoring.servers
    making, score = (phases["rollout"] + phases["decode"]) / ranks, phases["reward"] / (servers or ranks)
    return phases["update"] / ranks + (max(making, score) if servers else making + score)
