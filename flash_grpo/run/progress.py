"""Tell how far a run has come: its budget, its place, and the progress bar."""

from dataclasses import dataclass

from tqdm import tqdm

from flash_grpo.algorithm import ranges
from flash_grpo.records.schema import Cost, IterationRecord


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The bounds of a run, which stops at the first bound that it reaches.

    None is no bound; at least one must be set. `records.schema.Cost` says which work counts. share: how much of the bounds
    the run takes: a method that needs less than those that it is compared with has a share below 1.
    """

    iterations: int | None
    device_hours: float | None
    pflop: float | None
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations is None and self.device_hours is None and self.pflop is None:
            raise ValueError("budget: set at least one of budget.iterations, budget.device_hours, budget.pflop")
        ranges.whole("budget.iterations", self.iterations, null=True)
        ranges.number("budget.device_hours", self.device_hours, above=0, null=True)
        ranges.number("budget.pflop", self.pflop, above=0, null=True)
        ranges.number("budget.share", self.share, above=0, at_most=1)

    def spent(self, iteration: int, cost: Cost) -> float:
        """Return the share of the budget that is used up; the run ends at 1."""
        used = (iteration, cost.device_seconds / 3600, cost.pflop)
        bounds = (self.iterations, self.device_hours, self.pflop)
        return max(
            amount / (self.share * bound) for amount, bound in zip(used, bounds, strict=True) if bound is not None
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a run has come.

    iteration: the last one that is complete. evaluated: the last one that was evaluated, -1 for none. evaluating: True
    while the evaluation after `iteration` is under way.
    """

    iteration: int = 0
    evaluated: int = -1
    evaluating: bool = False

    def described(self, inside: bool) -> str:
        """Describe the place in words. inside: True in the middle of the next iteration or of the evaluation."""
        during = "in the evaluation after" if self.evaluating else "in the middle of the one after"
        return f"{f'{during} ' if inside else 'after '}iteration {self.iteration}"


def progress_bar(name: str, spent: float, shown: bool) -> tqdm:
    """Return a progress bar over the budget, with the time left. spent: the share of the budget that is used up."""
    return tqdm(
        total=100,
        initial=min(100, round(100 * spent, 2)),
        desc=name,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix[0]}, {elapsed} gone, {remaining} left",
        postfix=["evaluating the start"],
        disable=None if shown else True,
    )


def advance(bar: tqdm, spent: float, record: IterationRecord) -> None:
    """Move the progress bar to the end of a completed iteration."""
    if not bar.disable:
        seconds = record.cost.device_seconds
        bar.postfix[0] = f"iteration {record.iteration}, reward {record.reward_mean:.3f}, {seconds:.1f} device-s"
        bar.update(min(100.0, 100 * spent) - bar.n)
