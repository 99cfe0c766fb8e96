"""Say how many prompts, siblings and iterations are needed: to train on more signal than noise, and to see a gain."""

import math
from dataclasses import dataclass

from flash_grpo.measure.gradient_noise import GradientNoise
from flash_grpo.measure.reward_spread import RewardSpread

SIZES = (4, 8, 16, 32)  # siblings
POWER_Z = 1.960 + 0.842  # a two-sided test at 5 % that finds a true effect four times in five


@dataclass(frozen=True, kw_only=True)
class Size:
    """A batch at which an iteration's gradient has as much signal as noise."""

    group_size: int
    num_prompts: float
    """Critical prompts, see `gradient_noise`; infinite where there is no gradient."""

    at_least: bool
    """True where no signal was resolved: then num_prompts is a lower bound."""

    iterations: float
    """After how many iterations of this size the mean training reward shows a gain; NaN where the size is infinite."""

    @property
    def rollouts(self) -> float:
        """Return the rollouts of an iteration."""
        return self.num_prompts * self.group_size


def sizes(gradient: GradientNoise, reward: RewardSpread, gain: float) -> list[Size]:
    """Return the critical batch for each of SIZES. gain: in units of the base reward's std."""
    found = []
    for group_size in SIZES:
        num_prompts = (gradient.critical_prompts if gradient.resolved else gradient.fewest_prompts)(group_size)
        if math.isfinite(num_prompts):
            num_prompts = max(math.ceil(num_prompts), 1)
        visible = iterations_until_visible(reward, gain, num_prompts, group_size)
        found.append(
            Size(group_size=group_size, num_prompts=num_prompts, at_least=not gradient.resolved, iterations=visible)
        )
    return found


def iterations_until_visible(reward: RewardSpread, gain: float, num_prompts: float, group_size: int) -> float:
    """Return in how many iterations the training reward must rise by `gain` so that a line fitted to it is significant.

    The mean reward of an iteration has variance s² = between/P + within/(P·G). A line through I iterations has a rise with
    variance 12·s²/I, so I = 12·s²·z²/gain², z of POWER_Z; at least 3. gain: in units of the base reward's std.
    """
    if not math.isfinite(num_prompts) or reward.std == 0:
        return math.nan
    variance = (reward.between + reward.within / group_size) / num_prompts
    return max(math.ceil(12 * variance * (POWER_Z / (gain * reward.std)) ** 2), 3)
