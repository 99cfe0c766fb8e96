"""Choose the prompts that an iteration trains on, and lay its rollouts out over optimizer steps and ranks."""

from dataclasses import dataclass, field
from typing import Any

import torch

from flash_grpo.algorithm import keyed, ranges
from flash_grpo.algorithm.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Texts to train on and held-out texts to evaluate on. metadata: what else is known of a held-out text, by text.
    oddities: what makes a result hard to interpret, a line each.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    oddities: tuple[str, ...] = ()

    def drawn(self, iteration: int, num_prompts: int, seed: int) -> list[str]:
        """Return the iteration's prompts, by slot. Every pass over the training texts has an order of its own."""
        first = (iteration - 1) * num_prompts
        return [self._at(position, seed) for position in range(first, first + num_prompts)]

    def _at(self, position: int, seed: int) -> str:
        epoch, index = divmod(position, len(self.train))
        return self.train[keyed.permutation(len(self.train), seed, "prompts", epoch)[index]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Lay out an iteration's rollouts: `num_prompts` groups of `group_size`, over optimizer steps, over ranks."""

    num_prompts: int
    group_size: int
    optimizer_steps: int = 1
    """Per epoch, each on its own share of the rollouts."""

    epochs: int = 1
    """How often an iteration trains on its rollouts."""

    shares: str = "prompts"
    """What an optimizer step's share is made of. prompts: whole groups; rollouts: drawn from all of them (release)."""

    seed: int = 0
    """Of that draw."""

    world_size: int = 1

    def __post_init__(self) -> None:
        ranges.whole("rollout.layout.num_prompts", self.num_prompts)
        ranges.whole("rollout.layout.group_size", self.group_size, at_least=2)
        ranges.whole("training.epochs", self.epochs)
        ranges.one_of("training.shares", self.shares, ("prompts", "rollouts"))
        ranges.whole("training.optimizer_steps", self.optimizer_steps)
        prompts = f"rollout.layout.num_prompts={self.num_prompts}"
        if self.num_prompts % self.optimizer_steps:
            raise ValueError(f"training.optimizer_steps={self.optimizer_steps}: must divide {prompts}")
        if self.per_step % self.world_size:
            raise ValueError(
                f"{prompts} x rollout.layout.group_size={self.group_size} / "
                f"training.optimizer_steps={self.optimizer_steps} = {self.per_step} rollouts per optimizer step "
                f"do not fill {self.world_size} ranks evenly"
            )

    @property
    def per_step(self) -> int:
        """Return the rollouts per optimizer step, over all ranks."""
        return self.num_prompts // self.optimizer_steps * self.group_size

    def batch(self, iteration: int, text_P: list[str], rank: int) -> PromptBatch:
        """Return the rank's equal share of every optimizer step's rollouts."""
        share = self.per_step // self.world_size
        steps = self._by_optimizer_step(iteration).reshape(self.optimizer_steps, self.world_size, share)
        index_B, order_B = steps[:, rank].flatten().sort()  # siblings side by side: they share states
        prompt_B = index_B // self.group_size
        return PromptBatch(
            iteration=iteration,
            num_prompts=self.num_prompts,
            group_size=self.group_size,
            text=tuple(text_P[prompt] for prompt in prompt_B.tolist()),
            prompt_B=prompt_B,
            sibling_B=index_B % self.group_size,
            optimizer_step_B=order_B // share,
        )

    def _by_optimizer_step(self, iteration: int) -> torch.Tensor:
        """Return all rollouts, prompt · group_size + sibling, one row per optimizer step: [optimizer_steps, per_step]."""
        count = self.num_prompts * self.group_size
        drawn = self.shares == "rollouts" and self.optimizer_steps > 1
        order = keyed.permutation(count, self.seed, "optimizer step", iteration) if drawn else range(count)
        return torch.tensor(order).reshape(self.optimizer_steps, -1).sort(dim=1).values
