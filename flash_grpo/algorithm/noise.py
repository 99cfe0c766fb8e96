"""Name the random draws of a batch's rollouts. What draws are keyed by decides what siblings share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from flash_grpo.algorithm import keyed, ranges
from flash_grpo.algorithm.types import PromptBatch

Key = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Let the rollouts of a prompt share their noise until they part, as the leaves of a tree (BranchGRPO, TreeGRPO).

    They begin from `roots` different x_T. At each of `steps` every branch parts into `branches`. In between, the rollouts of
    a branch receive the same noise, so they are one state. After the last parting each goes alone.
    """

    steps: Sequence[int] = ()
    """Counted among a rollout's stochastic steps, 0 is the first. Empty: all part at the first one."""

    branches: int = 2
    roots: int = 1

    def __post_init__(self) -> None:
        ranges.whole("method.tree.branches", self.branches, at_least=2)
        ranges.whole("method.tree.roots", self.roots)
        if not isinstance(self.steps, Sequence) or isinstance(self.steps, str):
            raise ValueError(f"method.tree.steps={ranges.shown(self.steps)}: must be a list, as in [0,3,6,9]")
        for step in self.steps:
            ranges.whole("method.tree.steps", step, at_least=0)
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError(f"method.tree.steps={ranges.shown(self.steps)}: must increase")

    def check(self, mask_PGT: torch.Tensor) -> None:
        """Raise ValueError unless the tree has a leaf for each sibling, and siblings the same mask, with all of its steps."""
        group_size, fewest = mask_PGT.shape[1], int(mask_PGT.sum(2).min())
        leaves = self.roots * self.branches ** len(self.steps) if self.steps else group_size
        if leaves != group_size or group_size % self.roots:
            raise ValueError(
                f"method.tree: roots={self.roots} and branches={self.branches} at {len(self.steps)} steps do not part the "
                f"rollout.layout.group_size={group_size} rollouts of a prompt into one each; roots x branches^steps must be "
                "their number, or without steps roots must divide it"
            )
        if (mask_PGT != mask_PGT[:, :1]).any():
            raise ValueError(
                "method.tree: rollouts of a branch are one state only where their stochastic steps are the same, and this "
                "method.plan gives siblings different ones; use plans.OneStep with shared_by=prompt, FullTrajectory, or a "
                "window with move=slide"
            )
        if self.steps and self.steps[-1] >= fewest:
            raise ValueError(
                f"method.tree.steps={ranges.shown(self.steps)}: counts a rollout's stochastic steps from 0, and this plan "
                f"makes {fewest} of them"
            )

    def leaders(self, sibling: int, group_size: int) -> list[int]:
        """Return whose noise a sibling receives, the first of its branch: at x_T, then at each step before the last parting."""
        partings = [
            sum(parting <= step for parting in self.steps) for step in range(self.steps[-1] if self.steps else 0)
        ]
        widths = [self.roots * self.branches**parted for parted in (0, *partings)]
        return [sibling - sibling % (group_size // width) for width in widths]


@dataclass(frozen=True, kw_only=True)
class NoiseKeys:
    """The keys of B rollouts' noise, see `keyed`. Rollouts whose keys so far are equal are in one state."""

    initial_B: tuple[Key, ...]
    """Of x_T. Equal keys stand for equal texts: a key names its prompt."""

    sde_B: tuple[Key, ...] = ()
    """Of the SDE steps' noise; the step's index is appended. Empty where no step is stochastic."""

    together_B: tuple[tuple[Key, ...], ...] = ()
    """Of the same at a rollout's first stochastic steps, up to its last parting in a tree; empty of a rollout that is alone."""

    centre_B: tuple[Key, ...] = ()
    """Of what siblings' x_T lie around, see `initial_state`; empty where they are independent or equal."""

    radius: float = 1.0

    def sde(self, row: int, taken: int, step: int) -> Key:
        """Return the key of a rollout's noise at `step`. taken: how many stochastic steps it has taken before."""
        together = self.together_B[row] if self.together_B else ()
        return (*(together[taken] if taken < len(together) else self.sde_B[row]), step)


def initial_state(shape: tuple[int, ...], keys: NoiseKeys, row: int) -> torch.Tensor:
    """Draw x_T of one rollout: sqrt(1 - radius²)·centre + radius·own noise, again standard normal (Neighbor GRPO)."""
    own = keyed.normal(shape, *keys.initial_B[row])
    if not keys.centre_B:
        return own
    return math.sqrt(1 - keys.radius**2) * keyed.normal(shape, *keys.centre_B[row]) + keys.radius * own


def noise_keys(
    batch: PromptBatch, seed: int, initial: str | float, tree: Tree | None = None, sde_seed: int | None = None
) -> NoiseKeys:
    """Return the training rollouts' keys.

    initial: "independent" draws x_T for each rollout, "shared" once for each prompt, a number in a neighbourhood of that
    radius, between the two. tree: until where siblings share noise; None parts them at their first stochastic step.
    sde_seed: for the SDE's noise alone, None takes `seed`.
    """
    rows = list(zip(batch.prompt_B.tolist(), batch.sibling_B.tolist(), strict=True))
    sde = seed if sde_seed is None else sde_seed
    tree = tree or Tree(roots=1 if initial == "shared" else batch.group_size)
    leaders_B = [tree.leaders(sibling, batch.group_size) for _, sibling in rows]
    of_prompt_B = [(seed, "initial", batch.iteration, prompt) for prompt, _ in rows]
    own_B = [(*key, leaders[0]) for key, leaders in zip(of_prompt_B, leaders_B, strict=True)]
    return NoiseKeys(
        initial_B=tuple(of_prompt_B if tree.roots == 1 else own_B),
        sde_B=tuple((sde, "sde", batch.iteration, prompt, sibling) for prompt, sibling in rows),
        together_B=tuple(
            tuple((sde, "sde", batch.iteration, prompt, leader) for leader in leaders[1:])
            for (prompt, _), leaders in zip(rows, leaders_B, strict=True)
        ),
        centre_B=() if isinstance(initial, str) else tuple(of_prompt_B),
        radius=1.0 if isinstance(initial, str) else initial,
    )
