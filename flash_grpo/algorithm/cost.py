"""Count what an iteration computes: transformer evaluations, decodes, scored videos. From masks, keys and ranks alone.

The meter counts the same as it happens; a test holds the two together. Before anything is drawn the counts of a method whose
plan is random are an expectation with a spread, see `expected`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.noise import NoiseKeys, noise_keys
from flash_grpo.algorithm.paths import WHOLE_GRID, Path, routes
from flash_grpo.algorithm.types import PromptBatch, UnitFlops


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one or several iterations compute, over all ranks."""

    rollout_velocities: float
    """Velocities of rollouts: one for each distinct state and step."""

    trained_states: float
    """States that an update replays, each forward and backward: in each of its optimizer steps, one for each distinct state
    of the stochastic steps.
    """

    videos: float
    """Videos decoded and scored."""

    old_velocities: float = 0.0
    """Velocities of the rollouts' policy at trained states, where the target needs them and several optimizer steps follow."""

    def forwards(self, evaluations_per_velocity: int, kl: bool) -> float:
        """Transformer forwards, per sample; guidance evaluates twice, a KL to the base once more for each trained state."""
        trained = (2 if kl else 1) * self.trained_states
        return evaluations_per_velocity * (self.rollout_velocities + self.old_velocities + trained)

    def backwards(self, evaluations_per_velocity: int) -> float:
        """Transformer backwards, per sample."""
        return evaluations_per_velocity * self.trained_states

    def pflop(self, evaluations_per_velocity: int, flops: UnitFlops, kl: bool) -> float:
        """PFLOP of the transformer: `records.schema.Cost.pflop`."""
        return pflop(flops, self.forwards(evaluations_per_velocity, kl), self.backwards(evaluations_per_velocity))

    def pflop_all(self, evaluations_per_velocity: int, flops: UnitFlops, kl: bool) -> float:
        """PFLOP of transformer, decoder and reward: `records.schema.Cost.pflop_all`."""
        return self.pflop(evaluations_per_velocity, flops, kl) + 1e-15 * self.videos * (flops.decode + flops.score)


def pflop(flops: UnitFlops, forwards: float, backwards: float) -> float:
    """Return the transformer's PFLOP, 1e-15 FLOP, of so many evaluations, with what gradient checkpointing recomputes."""
    return 1e-15 * (forwards * flops.forward + backwards * (flops.backward + flops.recompute))


def counted(
    method: Method,
    layout: Layout,
    num_steps: int,
    seed: int,
    iteration: int,
    rollout_batch: int,
    kept: Callable[[PromptBatch], torch.Tensor] | None = None,
    path: Path = WHOLE_GRID,
) -> Counts:
    """Return the counts of one iteration, drawn as the run draws it.

    rollout_batch: as `rollout.batch`; it cuts a rank's rollouts into parts of whole groups, so it does not change the counts.
    kept: which rollouts of a rank's batch are trained, bool [B]: those with an advantage other than zero or, of a target that
    needs all siblings, those of a group with one; None is all.
    """
    velocities = states = videos = old = 0
    needs, several = method.needs, layout.epochs * layout.optimizer_steps > 1
    for rank in range(layout.world_size):
        whole = layout.batch(iteration, [""] * layout.num_prompts, rank)
        for route in routes(whole, method.plan(whole, num_steps, seed), path, rollout_batch):
            batch = route.batch
            keys = noise_keys(batch, seed, method.initial_noise)
            keep_B = torch.ones(len(batch), dtype=torch.bool) if kept is None else kept(batch)
            mask_BT = route.mask_BT
            of_part = distinct_states(keys, mask_BT, keep_B, batch.optimizer_step_B, needs.stochastic)
            velocities, videos = velocities + of_part[0], videos + len(batch)
            states += layout.epochs * of_part[1]
            old += int(mask_BT[keep_B].sum()) if needs.old_velocity and several else 0
    return Counts(rollout_velocities=velocities, trained_states=states, videos=videos, old_velocities=old)


def expected(
    method: Method,
    layout: Layout,
    num_steps: int,
    seed: int,
    rollout_batch: int,
    iterations: int = 64,
    path: Path = WHOLE_GRID,
) -> tuple[Counts, Counts]:
    """Return the mean and the standard deviation of an iteration's counts over `iterations` draws of the plan."""
    draws = [
        counted(method, layout, num_steps, seed, iteration, rollout_batch, path=path)
        for iteration in range(1, 1 + iterations)
    ]

    def over(statistic: Callable[[Iterable[float]], float]) -> Counts:
        return Counts(**{name: statistic([getattr(draw, name) for draw in draws]) for name in vars(draws[0])})

    return over(fmean), over(pstdev)


def distinct_states(
    keys: NoiseKeys,
    mask_BT: torch.Tensor,
    keep_B: torch.Tensor,
    optimizer_step_B: torch.Tensor,
    stochastic: bool = True,
) -> tuple[int, int]:
    """Return how many velocities these rollouts take, and from how many states each optimizer step's kept ones are trained.

    A rollout's state is told by the keys of all noise that it has met; rollouts with equal keys so far are one state.
    stochastic: whether the trained steps, mask_BT, are.
    """
    met = list(keys.initial_B)
    velocities = trained = 0
    for step in range(mask_BT.shape[1]):
        velocities += len(set(met))
        rows = mask_BT[:, step].nonzero().flatten().tolist()
        trained += len({(met[row], int(optimizer_step_B[row])) for row in rows if keep_B[row]})
        for row in rows if stochastic else ():
            met[row] = (*met[row], "sde", step, *keys.sde_B[row])
    return velocities, trained
