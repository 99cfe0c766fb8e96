"""Let the learning rate fall while a run spends its FLOPs."""

from dataclasses import dataclass

from flash_grpo.algorithm import ranges


@dataclass(frozen=True, kw_only=True)
class Anneal:
    """Fall linearly to `to` times the learning rate over the first share·over_pflop, and stay there; to=1 is constant.

    The horizon is a setting of its own and defines the run: a larger budget continues the run and does not stretch it.
    FLOPs are counted, so that the rate does not depend on how fast a machine is.
    """

    to: float = 1.0
    over_pflop: float | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        ranges.number("optim.anneal.to", self.to, above=0, at_most=1)
        ranges.number("optim.anneal.over_pflop", self.over_pflop, above=0, null=True)
        ranges.number("optim.anneal.share", self.share, above=0, at_most=1)
        if self.to < 1 and self.over_pflop is None:
            raise ValueError(
                f"optim.anneal.to={self.to}: needs optim.anneal.over_pflop, the PFLOP over which the rate falls, as in "
                "optim.anneal.over_pflop=${budget.pflop}"
            )

    def factor(self, pflop: float) -> float:
        """Return by what the learning rate is multiplied after this many PFLOP."""
        if self.over_pflop is None:
            return 1.0
        return 1 - (1 - self.to) * min(1.0, pflop / (self.share * self.over_pflop))
