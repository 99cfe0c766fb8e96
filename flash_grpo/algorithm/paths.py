"""Choose at which places of the grid a rollout evaluates the transformer: everywhere, or few times around its trained step.

A place is an index into the grid; between two grid points it is a fraction, so places at equal distances are as dense in sigma
as the grid is. The trained step itself always goes from one grid point to the next: training replays the grid's own step.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from flash_grpo.algorithm import ranges
from flash_grpo.algorithm.types import FlowSchedule, PromptBatch


@dataclass(frozen=True, kw_only=True)
class Path:
    """How many evaluations lead from x_T to the trained step, and how many follow it before the result is decoded.

    None is the grid's own steps; more than the grid has there are not taken. follow=0 decodes what the trained step's
    own velocity points at: siblings that share x_T then differ in that step's noise alone.
    """

    lead: int | None = None
    follow: int | None = None

    def __post_init__(self) -> None:
        ranges.whole("rollout.path.lead", self.lead, at_least=0, null=True)
        ranges.whole("rollout.path.follow", self.follow, at_least=0, null=True)

    @property
    def is_whole(self) -> bool:
        """Return True if rollouts take the whole grid."""
        return self.lead is None and self.follow is None

    def places(self, step: int, num_steps: int) -> tuple[float, ...]:
        """Return where a rollout with this trained step evaluates the transformer, and where it ends."""
        lead = _between(0, step, self.lead)
        if self.follow == 0:
            return (*lead, step, step + 1)
        return (*lead, step, *_between(step + 1, num_steps, self.follow), num_steps)


WHOLE_GRID = Path()


@dataclass(frozen=True, kw_only=True)
class Route:
    """Rollouts that are denoised together: all take the same places of the grid."""

    batch: PromptBatch
    place_S: tuple[float, ...]
    """Step k goes from `place_S[k]` to `place_S[k + 1]`."""

    mask_BT: torch.Tensor
    """Which of these steps are trained, bool."""

    def grid_step(self, step_N: torch.Tensor) -> torch.Tensor:
        """Return the grid's own index of these trained steps."""
        return torch.tensor(self.place_S)[step_N].long()


def routes(batch: PromptBatch, mask_BT: torch.Tensor, path: Path, at_once: int) -> list[Route]:
    """Return the batch's rollouts in parts, in order. mask_BT: the trained steps, on the grid.

    On the whole grid a part is of whole groups, see `PromptBatch.split`; on a path, of neighbours with one trained step.
    ValueError for a path around a step of rollouts that have several.
    """
    if not path.is_whole and (mask_BT.sum(1) != 1).any():
        raise ValueError(
            "rollout.path: leads to one trained step and on from it, and the rollouts of method.plan have several; choose a "
            "plan of one step, or leave rollout.path.lead and rollout.path.follow null"
        )
    found: list[Route] = []
    first, num_steps = 0, mask_BT.shape[1]
    for part in batch.split(at_once):
        of_part_BT = mask_BT[first : first + len(part)]
        first += len(part)
        if path.is_whole:
            found.append(Route(batch=part, place_S=tuple(range(num_steps + 1)), mask_BT=of_part_BT))
        else:
            found += _by_step(part, of_part_BT.int().argmax(1).tolist(), num_steps, path)
    return found


def on_places(schedule: FlowSchedule, place_S: tuple[float, ...]) -> FlowSchedule:
    """Return the schedule of the steps between these places; only those that are the grid's own can be stochastic."""
    if place_S == tuple(range(len(schedule) + 1)):
        return schedule
    sigma_S = torch.stack([_sigma(schedule, place) for place in place_S])
    own_T = [int(place) if place == int(place) and end == place + 1 else None for place, end in pairwise(place_S)]

    def own(value_T: torch.Tensor, others_T: torch.Tensor) -> torch.Tensor:
        """Return the grid's value of its own steps, and that of all others."""
        pairs = zip(own_T, others_T, strict=True)
        return torch.stack([other if step is None else value_T[step] for step, other in pairs])

    one_T = torch.ones(len(own_T))
    return FlowSchedule(
        sigma_S=sigma_S.float(),
        timestep_T=torch.stack([_timestep(schedule, place) for place in place_S[:-1]]),
        dt_T=own(schedule.dt_T, sigma_S.diff().float()),
        x_factor_T=own(schedule.x_factor_T, one_T),
        v_factor_T=own(schedule.v_factor_T, one_T),
        noise_std_T=own(schedule.noise_std_T, 0 * one_T),
    )


def _by_step(part: PromptBatch, step_B: list[int], num_steps: int, path: Path) -> list[Route]:
    """Cut where the trained step changes: siblings of one step, and neighbours that happen to have it, stay together."""
    starts = [row for row in range(len(part)) if not row or step_B[row] != step_B[row - 1]]
    found = []
    for first, end in zip(starts, [*starts[1:], len(part)], strict=True):
        place_S = path.places(step_B[first], num_steps)
        mask_T = torch.tensor([place == step_B[first] for place in place_S[:-1]])
        rows = part.rows(torch.arange(first, end))
        found.append(Route(batch=rows, place_S=place_S, mask_BT=mask_T.expand(end - first, -1)))
    return found


def _between(first: int, end: int, count: int | None) -> tuple[float, ...]:
    """Return `count` places at equal distances from `first` on, before `end`; None, or more than there are, is each index."""
    steps = end - first
    count = steps if count is None else min(count, steps)
    return tuple(first + index * steps / count for index in range(count))


def _sigma(schedule: FlowSchedule, place: float) -> torch.Tensor:
    """Return sigma at a place, float64, linear between grid points."""
    below = int(place)
    sigma_S = schedule.sigma_S[below : below + 2].double()
    return sigma_S[0] if place == below else torch.lerp(sigma_S[0], sigma_S[1], place - below)


def _timestep(schedule: FlowSchedule, place: float) -> torch.Tensor:
    whole = place == int(place)
    return schedule.timestep_T[int(place)] if whole else (1000 * _sigma(schedule, place)).floor().long()
