"""Count what an iteration computes: transformer evaluations, decodes, scored videos. From masks, keys and ranks alone.

The meter counts the same as it happens; a test holds the two together. Before anything is drawn the counts of a method whose
plan is random are an expectation with a spread, see `expected`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.advantage import trained_siblings
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
    """Velocities at trained states before the update, where they are needed and several optimizer steps follow."""

    def forwards(self, evaluations: int, kl: bool, training: int | None = None) -> float:
        """Transformer forwards, per sample; a KL to the base takes one more velocity for each trained state.

        evaluations: of a velocity, 2 with guidance. training: of training's velocities, None if they are the rollouts'.
        """
        trained = (2 if kl else 1) * self.trained_states + self.old_velocities
        return evaluations * self.rollout_velocities + (training or evaluations) * trained

    def backwards(self, evaluations: int) -> float:
        """Transformer backwards, per sample. evaluations: of one of training's velocities."""
        return evaluations * self.trained_states

    def pflop(self, evaluations: int, flops: UnitFlops, kl: bool, training: int | None = None) -> float:
        """PFLOP of the transformer: `records.schema.Cost.pflop`."""
        return pflop(flops, self.forwards(evaluations, kl, training), self.backwards(training or evaluations))

    def pflop_all(self, evaluations: int, flops: UnitFlops, kl: bool, training: int | None = None) -> float:
        """PFLOP of transformer, decoder and reward: `records.schema.Cost.pflop_all`."""
        return self.pflop(evaluations, flops, kl, training) + 1e-15 * self.videos * (flops.decode + flops.score)


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
    off_policy: bool = False,
) -> Counts:
    """Return the counts of one iteration, drawn as the run draws it.

    rollout_batch: as `rollout.batch`; it cuts a rank's rollouts into parts of whole groups, so it does not change the counts.
    kept: which rollouts of a rank's batch are trained, bool [B], see `training.steps.trained_PG`; None is all. Before there
    are rewards `drawn_share` stands for them. off_policy: rollouts have another guidance than training.
    """
    velocities = states = videos = old = 0
    needs, several = method.needs, layout.epochs * layout.optimizer_steps > 1
    needs_old = several and needs.old_velocities(off_policy)
    for rank in range(layout.world_size):
        whole = layout.batch(iteration, [""] * layout.num_prompts, rank)
        for route in routes(whole, method.plan(whole, num_steps, seed), path, rollout_batch):
            batch = route.batch
            keys = noise_keys(batch, seed, method.initial_noise, method.tree)
            keep_B = torch.ones(len(batch), dtype=torch.bool) if kept is None else kept(batch)
            mask_BT = route.mask_BT
            of_part = distinct_states(keys, mask_BT, keep_B, batch.optimizer_step_B, needs.stochastic)
            at_once = distinct_states(keys, mask_BT, keep_B, 0 * batch.optimizer_step_B, needs.stochastic)
            velocities, videos = velocities + of_part[0], videos + len(batch)
            states += layout.epochs * of_part[1]
            old += at_once[1] if needs_old else 0
    return Counts(rollout_velocities=velocities, trained_states=states, videos=videos, old_velocities=old)


def expected(
    method: Method,
    layout: Layout,
    num_steps: int,
    seed: int,
    rollout_batch: int,
    iterations: int = 64,
    path: Path = WHOLE_GRID,
    train_fraction: float = 1.0,
    off_policy: bool = False,
) -> tuple[Counts, Counts]:
    """Return the mean and the standard deviation of an iteration's counts over `iterations` draws of the plan."""
    kept = drawn_share(train_fraction, seed) if train_fraction < 1 else None
    draws = [
        counted(method, layout, num_steps, seed, iteration, rollout_batch, kept, path, off_policy)
        for iteration in range(1, 1 + iterations)
    ]

    def over(statistic: Callable[[Iterable[float]], float]) -> Counts:
        return Counts(**{name: statistic([getattr(draw, name) for draw in draws]) for name in vars(draws[0])})

    return over(fmean), over(pstdev)


def drawn_share(fraction: float, seed: int) -> Callable[[PromptBatch], torch.Tensor]:
    """Return a function that says of a batch's rollouts which are trained, as many of each group as `trained_siblings` says.

    Which ones it is depends on rewards that are not there yet, so they are drawn.
    """

    def kept(batch: PromptBatch) -> torch.Tensor:
        count = trained_siblings(fraction, batch.group_size)
        chosen_P = [
            set(keyed.permutation(batch.group_size, seed, "trained", batch.iteration, prompt)[:count])
            for prompt in range(batch.num_prompts)
        ]
        rows = zip(batch.prompt_B.tolist(), batch.sibling_B.tolist(), strict=True)
        return torch.tensor([sibling in chosen_P[prompt] for prompt, sibling in rows])

    return kept


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
            met[row] = (*met[row], "sde", *keys.sde(row, int(mask_BT[row, :step].sum()), step))
    return velocities, trained
