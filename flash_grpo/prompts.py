"""Which prompts an iteration trains on, and which ones evaluation asks."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flash_grpo import keyed, shapes
from flash_grpo.types import PromptBatch


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
        """The iteration's prompts, by slot. Every pass over the training texts has an order of its own."""
        first = (iteration - 1) * num_prompts
        return [self._at(position, seed) for position in range(first, first + num_prompts)]

    def _at(self, position: int, seed: int) -> str:
        epoch, index = divmod(position, len(self.train))
        return self.train[keyed.permutation(len(self.train), seed, "prompts", epoch)[index]]


def from_shapes() -> Prompts:
    """The tiny world's 32 captions, all of them, for both: there are no others. Evaluation differs in its noise."""
    texts = tuple(shapes.captions())
    return Prompts(train=texts, test=texts)


def from_files(train: str, test: str) -> Prompts:
    """UTF-8. .txt: one prompt a line. .jsonl: one object a line, with its "prompt"; the rest is metadata. Blank lines are
    left out.

    Duplicates, and held-out prompts that are trained on too, stay: the files are the user's. `oddities` names them.
    """
    trained, held_out = _read("train", train), _read("test", test)
    prompts = Prompts(
        train=tuple(one["prompt"] for one in trained),
        test=tuple(one["prompt"] for one in held_out),
        metadata={one["prompt"]: {key: one[key] for key in one if key != "prompt"} for one in held_out if len(one) > 1},
    )
    return replace(prompts, oddities=tuple(_oddities(prompts)))


def _oddities(prompts: Prompts) -> list[str]:
    told = []
    for key, texts in (("train", prompts.train), ("test", prompts.test)):
        if repeated := [text for text, count in Counter(texts).items() if count > 1]:
            told.append(f"prompts.{key}: {len(repeated)} prompts stand there more than once, {repeated[0]!r} for one")
    if shared := sorted(set(prompts.train) & set(prompts.test)):
        told.append(
            f"prompts: {len(shared)} of {len(set(prompts.test))} held-out prompts are trained on, {shared[0]!r} for one"
        )
    return told


def _read(key: str, path: str) -> list[dict[str, Any]]:
    """A line's object each, {prompt: text} of a line of text."""
    if not Path(path).is_file():
        raise ValueError(f"prompts.{key}={path}: there is no such file")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut in the middle of a text
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts.{key}={path}: not UTF-8 ({error})") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"prompts.{key}={path}: the file holds no prompt")
    if Path(path).suffix != ".jsonl":
        return [{"prompt": line} for _, line in numbered]
    return [_object_of(line, f"prompts.{key}={path}: line {number}") for number, line in numbered]


def _object_of(line: str, where: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
        text = told["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: expected a JSON object with "prompt" ({type(error).__name__}: {error})') from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: its prompt is no text")
    return {**told, "prompt": text.strip()}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an iteration's rollouts are laid out: `num_prompts` groups of `group_size`, over optimizer steps, over ranks."""

    num_prompts: int
    group_size: int
    optimizer_steps: int = 1
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"rollout.num_prompts={self.num_prompts}: at least 1 prompt per iteration is needed")
        if self.group_size < 2:
            raise ValueError(f"rollout.group_size={self.group_size}: a group needs at least 2 rollouts to compare")
        if self.optimizer_steps < 1 or self.num_prompts % self.optimizer_steps:
            raise ValueError(
                f"training.optimizer_steps={self.optimizer_steps}: must divide rollout.num_prompts={self.num_prompts}"
            )
        if self.per_step % self.world_size:
            raise ValueError(
                f"rollout.num_prompts={self.num_prompts} x rollout.group_size={self.group_size} / "
                f"training.optimizer_steps={self.optimizer_steps} = {self.per_step} rollouts per optimizer step "
                f"do not fill {self.world_size} ranks evenly"
            )

    @property
    def per_step(self) -> int:
        """Rollouts per optimizer step, over all ranks."""
        return self.num_prompts // self.optimizer_steps * self.group_size

    def optimizer_step_of(self, prompt_N: torch.Tensor) -> torch.Tensor:
        """Which of the iteration's optimizer steps trains the prompt in this slot."""
        return prompt_N // (self.num_prompts // self.optimizer_steps)

    def batch(self, iteration: int, text_P: list[str], rank: int) -> PromptBatch:
        """The rank's equal share of every optimizer step's rollouts."""
        share = self.per_step // self.world_size
        index = torch.arange(self.num_prompts * self.group_size).reshape(self.optimizer_steps, self.world_size, share)
        index_B = index[:, rank].flatten()
        prompt_B = index_B // self.group_size
        return PromptBatch(
            iteration=iteration,
            num_prompts=self.num_prompts,
            group_size=self.group_size,
            text=tuple(text_P[prompt] for prompt in prompt_B.tolist()),
            prompt_B=prompt_B,
            sibling_B=index_B % self.group_size,
        )
