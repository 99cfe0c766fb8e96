"""Ask a reward for scores, and check what it returns: every score of the suite enters here, local or remote."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flash_grpo.algorithm.protocols import Asked, Reward, RewardError
from flash_grpo.algorithm.types import Scores

LARGEST = sys.float_info.max


def ask(reward: Reward, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Asked:
    """Have the videos scored: now, or, by a reward with an `ask` of its own, elsewhere while the caller goes on.

    The scores are checked when they are fetched, see `checked_scores`. Only a `CheckedReward` also remembers their kind.
    """
    return (reward if isinstance(reward, CheckedReward) else CheckedReward(reward)).ask(video_BFHWC, text)


@dataclass(frozen=True)
class Kind:
    """What must be the same of all scores of a run. parts: names, in the order of the first scores. source: see `Scores`."""

    parts: tuple[str, ...]
    source: tuple[str, ...]

    @classmethod
    def of(cls, scores: Scores) -> "Kind":
        return cls(parts=tuple(scores.parts), source=scores.source)

    def refusal(self, other: "Kind") -> str:
        """Return how `other` differs from this kind, '' if it does not."""
        if set(self.parts) != set(other.parts):
            return f"parts {_listed(other.parts)}, where the first scores had {_listed(self.parts)}"
        differing = [item for item in other.source if item not in self.source]
        missing = [item for item in self.source if item not in other.source]
        return f"scored by {_listed(differing)}, the first by {_listed(missing)}" if differing or missing else ""


@dataclass
class CheckedReward:
    """A reward whose scores are checked and must all be of one kind. kind: of the first scores; None before them."""

    reward: Reward
    kind: Kind | None = None

    def __call__(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> Scores:
        return self.ask(video_BFHWC, text).get()

    def ask(self, video_BFHWC: torch.Tensor, text: tuple[str, ...]) -> "CheckedAnswer":
        elsewhere = getattr(self.reward, "ask", None)
        asked = elsewhere(video_BFHWC, text) if elsewhere else Answered(self.reward(video_BFHWC, text))
        return CheckedAnswer(asked, self, tuple(text))

    def accepted(self, scores: object, text: tuple[str, ...]) -> Scores:
        """Return the checked scores, parts in the order of the first; RewardError if they are refused."""
        found = checked_scores(scores, text, f"reward {name_of(self.reward)}")
        self.kind = self.kind or Kind.of(found)
        if refusal := self.kind.refusal(Kind.of(found)):
            raise RewardError(f"reward {name_of(self.reward)}: {refusal}; a reward must be the same throughout a run")
        return Scores(
            total_B=found.total_B,
            parts={name: found.parts[name] for name in self.kind.parts},
            device_seconds=found.device_seconds,
            source=found.source,
        )


@dataclass(frozen=True)
class CheckedAnswer:
    """Scores on their way, to be checked when they are fetched. asked: unchecked. text: of the B videos."""

    asked: Asked
    reward: CheckedReward
    text: tuple[str, ...]

    def ready(self) -> bool:
        return self.asked.ready()

    def get(self) -> Scores:
        """Wait for the scores; RewardError if there are none to be had or they are refused."""
        return self.reward.accepted(self.asked.get(), self.text)


@dataclass(frozen=True)
class Answered:
    """Scores that are there already, unchecked."""

    scores: Any

    def ready(self) -> bool:
        return True

    def get(self) -> Any:
        return self.scores


def checked_scores(scores: object, text: Sequence[str], who: str) -> Scores:
    """Return the scores of B videos as float32 [B] on the CPU, in memory of their own.

    Float tensors of other widths are cast. Anything else that is not a finite float tensor [B] is refused, and so are costs
    that are negative or not finite: RewardError in one line. text: of the B videos. who: the scorer, for the message.
    """
    if not isinstance(scores, Scores):
        expected = f"Scores(total_B=float tensor [{len(text)}], parts={{name: float tensor [{len(text)}]}})"
        raise RewardError(f"{who}: returned {_described(scores)}; expected {expected}")
    if not isinstance(scores.parts, Mapping) or not all(isinstance(name, str) for name in scores.parts):
        raise RewardError(f"{who}: parts is {_described(scores.parts)}; expected a mapping from names to float tensors")
    if not isinstance(scores.source, tuple) or not all(isinstance(item, str) for item in scores.source):
        raise RewardError(f"{who}: source is {_described(scores.source)}; expected a tuple of strings")
    seconds = scores.device_seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LARGEST:
        raise RewardError(f"{who}: device_seconds is {seconds!r:.100}; expected seconds, finite and not negative")
    parts = {name: _checked(value, text, f"{who}: parts[{name!r:.60}]") for name, value in scores.parts.items()}
    total_B = _checked(scores.total_B, text, f"{who}: total_B")
    return Scores(total_B=total_B, parts=parts, device_seconds=float(seconds), source=scores.source)


def _checked(value: object, text: Sequence[str], where: str) -> torch.Tensor:
    """Return one finite float32 number for each text, [B]; RewardError otherwise. where: scorer and part, for the message."""
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout is torch.strided
    if not isinstance(value, torch.Tensor) or not is_float or value.is_meta or value.shape != (len(text),):
        expected = f"a float tensor [{len(text)}], a score for each video"
        raise RewardError(f"{where} is {_described(value)}; expected {expected}")
    value_B = value.detach().to("cpu", torch.float32, copy=True)
    bad = (~value_B.isfinite()).nonzero().flatten().tolist()
    if bad:
        video = f"{text[bad[0]]!r} (video {bad[0] + 1} of {len(text)})"
        raise RewardError(f"{where} of {video} is {float(value_B[bad[0]])}; {len(bad)} of {len(text)} are not finite")
    return value_B


def _described(value: object) -> str:
    """Describe, in a few words, what came in place of scores."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__qualname__}"


def _listed(names: Sequence[str]) -> str:
    """List the names in one line of bounded length: a server may have sent them."""
    line = " ".join(", ".join(names).split()) or "nothing"
    return line if len(line) <= 200 else f"{line[:199]}…"


def name_of(reward: Reward) -> str:
    """Return the name of the reward's class, or of the function that it is."""
    function = reward.func if isinstance(reward, partial) else reward
    return getattr(function, "__qualname__", type(function).__qualname__)


def joined_scores(parts: Sequence[Scores]) -> Scores:
    """Return the scores of all parts' videos, in order. The parts must be of one kind."""
    return Scores(
        total_B=torch.cat([part.total_B for part in parts]),
        parts={name: torch.cat([part.parts[name] for part in parts]) for name in parts[0].parts},
        device_seconds=sum(part.device_seconds for part in parts),
        source=parts[0].source,
    )
