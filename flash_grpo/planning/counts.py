"""Count what a run's iterations compute: as an expectation before its plans are drawn, or drawn as the run draws them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, repeat

from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.batches import Layout
from flash_grpo.algorithm.cost import Counts, counted, drawn_share, expected
from flash_grpo.algorithm.method import Method
from flash_grpo.algorithm.needs import Needs
from flash_grpo.algorithm.paths import Path, Route, routes
from flash_grpo.run import build
from flash_grpo.run.guidance import is_off_policy

DECIDING = ("schedule", "method", "rollout", "training")  # sections that decide how much is computed
LOOKED_AT = 8  # ranks
DRAWS = 16  # of an expectation; its own error is in the spread of a total


@dataclass(frozen=True, kw_only=True)
class Largest:
    """What the fullest rank of an iteration has. part: rollouts that are denoised together. kept_of_part, kept: trained steps
    of that part, and of all its rollouts. kept_latents: kept of a trained step: where it began and, if asked, where it ended.
    """

    rollouts: int
    part: int
    kept_of_part: int
    kept: int
    kept_latents: int


@dataclass(frozen=True, kw_only=True)
class Iterations:
    """The counts of an arm's iterations. mean, spread: of one, over `DRAWS` drawn plans. drawn: of a seed's, in order."""

    mean: Counts
    spread: Counts
    drawn: Callable[[int], Iterator[Counts]]
    largest: Largest

    def expected(self) -> Iterator[Counts]:
        """Return the mean, again and again."""
        return repeat(self.mean)


def iterations_of(cfg: DictConfig, ranks: int) -> Iterations:
    """Return the counts of a run's iterations on so many ranks. ConfigError if its parts do not fit together.

    Arms that differ in nothing that is counted, as in the learning rate, are counted once.
    """
    parts = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in DECIDING}
    return _iterations(json.dumps(parts), ranks, is_off_policy(cfg))


@lru_cache
def _iterations(parts: str, ranks: int, off_policy: bool) -> Iterations:
    cfg = OmegaConf.create(json.loads(parts) | {"seed": 0})
    schedule, method, layout = build.designed(cfg, ranks)
    path = build.build(cfg.rollout.path, "rollout.path", Path)
    fraction, sizes = cfg.rollout.train_fraction, (len(schedule), cfg.rollout.batch, path, off_policy)
    mean, spread = expected(
        method, layout, len(schedule), cfg.seed, cfg.rollout.batch, DRAWS, path, fraction, off_policy
    )

    def drawn(seed: int) -> Iterator[Counts]:
        return _drawn(method, Layout(**vars(layout) | {"seed": seed}), fraction, *sizes)

    largest = _largest(method, layout, len(schedule), cfg.rollout.batch, path)
    return Iterations(mean=mean, spread=spread, drawn=drawn, largest=largest)


def _largest(method: Method, layout: Layout, steps: int, at_once: int, path: Path) -> Largest:
    """Return what the fullest of the first ranks has in the first iteration; ranks differ by chance alone."""
    batches = (layout.batch(1, [""] * layout.num_prompts, rank) for rank in range(min(layout.world_size, LOOKED_AT)))
    found = [
        _of_parts(method.needs, routes(batch, method.plan(batch, steps, layout.seed), path, at_once))
        for batch in batches
    ]
    return max(found, key=lambda largest: (largest.part, largest.kept_of_part))


def _of_parts(needs: Needs, parts: list[Route]) -> Largest:
    """Return what a rank has whose rollouts are made in these parts."""
    kept = [int(part.mask_BT.sum()) if needs.where != "x_0" else len(part.batch) for part in parts]
    ended = needs.stochastic or needs.siblings == "x_next"
    return Largest(
        rollouts=sum(len(part.batch) for part in parts),
        part=max(len(part.batch) for part in parts),
        kept_of_part=max(kept),
        kept=sum(kept),
        kept_latents=1 + (ended and needs.where != "x_0"),
    )


def _drawn(
    method: Method, layout: Layout, fraction: float, steps: int, batch: int, path: Path, off_policy: bool
) -> Iterator[Counts]:
    """Yield each iteration's counts, its plan drawn; rollouts that will have no advantage count as trained."""
    kept = drawn_share(fraction, layout.seed) if fraction < 1 else None
    for iteration in count(1):
        yield counted(method, layout, steps, layout.seed, iteration, batch, kept, path, off_policy)


def added(parts: list[Counts]) -> Counts:
    """Return the sum of several iterations' counts."""
    return Counts(**{name: sum(getattr(part, name) for part in parts) for name in vars(parts[0])})


def times(counts: Counts, factor: float) -> Counts:
    """Return counts multiplied by a number."""
    return Counts(**{name: factor * value for name, value in vars(counts).items()})


def spread_of_total(spread: Counts, iterations: int) -> Counts:
    """Return the standard deviation of the sum over so many iterations, as the expectation predicts it.

    Iterations are independent: σ·√n. The mean is itself of DRAWS draws, whose error σ/√DRAWS repeats in each: n·σ/√DRAWS.
    """
    return times(spread, (iterations + iterations**2 / DRAWS) ** 0.5)
