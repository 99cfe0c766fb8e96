"""Ask for the scores of an iteration's rollouts, and take them in as they come."""

from dataclasses import dataclass, field, replace

import torch

from flash_grpo.algorithm.protocols import Asked
from flash_grpo.algorithm.scoring import CheckedReward, ask, joined_scores
from flash_grpo.algorithm.types import Scores
from flash_grpo.training.journal import Journal
from flash_grpo.training.meter import Meter


@dataclass(kw_only=True)
class AwaitedScores:
    """Scores of the parts of a batch, by the part's index. The journal holds those that have come, as scores/INDEX."""

    reward: CheckedReward
    meter: Meter
    journal: Journal
    asked: dict[int, Asked] = field(default_factory=dict)

    def ask(self, index: int, video_BFHWC: torch.Tensor, texts: tuple[str, ...]) -> None:
        """Ask for the scores of a part's videos, unless they have come, now or in an earlier start of the run."""
        if f"scores/{index}" not in self.journal.done:
            self.asked[index] = ask(self.reward, video_BFHWC, texts)

    def take_in(self) -> bool:
        """Note the scores that have come, and drop the videos they belong to; return True if none is missing."""
        for index in [index for index, answer in self.asked.items() if answer.ready()]:
            scores = self.asked.pop(index).get()
            self.meter.charge(scores.device_seconds)
            self.meter.count(scored=len(scores.total_B))
            part = self.journal.done[f"rollouts/{index}"]
            self.journal.done[f"rollouts/{index}"] = replace(part, video_BFHWC=part.video_BFHWC[:0].clone())
            self.journal.done[f"scores/{index}"] = scores
        return not self.asked

    def joined(self, parts: int) -> Scores:
        """Return the scores of that many parts as those of one batch, and take them out of the journal."""
        return joined_scores([self.journal.done.pop(f"scores/{index}") for index in range(parts)])
