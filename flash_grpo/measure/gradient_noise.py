"""Tell a policy gradient's signal from its noise, by the inner products of gradients of halves of batches.

A half is n prompts with their groups. Each half u is rolled out twice, d = 1, 2, and its gradient is g_ud = G + a_u + b_ud:
the true gradient, what these prompts add (E|a|² = A/n), and what these rollouts add (E|b|² = W/n). Therefore

    E<g_ud, g_ve> = |G|²             of different halves, u ≠ v: they agree in the true gradient alone
    E<g_u1, g_u2> = |G|² + A/n       of the same prompts, rolled out anew
    E|g_ud|²      = |G|² + (A + W)/n

and the means of these products estimate |G|², A and W without bias. For two halves of one batch the first line is the
estimator of |G|² of McCandlish et al. (arXiv 1812.06162, appendix A.1) with B_big = 2·B_small. The critical batch is their
simple noise scale, tr(Σ)/|G|² (equation 2.9), in prompts: (A + W)/|G|². There the gradient is half signal and half noise. A
batch far below it makes progress in proportion to its size; far beyond it, more rollouts buy next to nothing. The two levels
are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """Signal and noise of one iteration's gradient."""

    signal: float
    """|G|², the squared norm of the true gradient; an unbiased estimate, so it may be negative."""

    of_prompts: float
    """A: the variance that a prompt adds, summed over parameters."""

    of_rollouts: float
    """W: the variance that a group of `group_size` rollouts of a given prompt adds."""

    num_prompts: int
    group_size: int
    signal_error: float = 0.0
    """Standard error of `signal`, by a jackknife over halves."""

    ratio_error: float = 0.0
    """Standard error of `ratio`."""

    @property
    def resolved(self) -> bool:
        """Return True if the signal is more than two standard errors above 0."""
        return self.signal > 2 * self.signal_error

    @property
    def ratio(self) -> float:
        """Return the signal-to-noise ratio |G|²·P/(A + W) of an iteration; infinite without noise, NaN without either."""
        return self.ratio_at(self.group_size)

    @property
    def cosine(self) -> float:
        """Return the expected cosine of the gradients of an iteration's halves, |G|²/(|G|² + 2(A + W)/P); NaN without any."""
        total = self.signal + self._noise(self.group_size) / (self.num_prompts / 2)
        return self.signal / total if total > 0 else math.nan

    @property
    def norm(self) -> float:
        """Return the root mean square of the norm of an iteration's gradient."""
        return math.sqrt(max(self.signal + self._noise(self.group_size) / self.num_prompts, 0.0))

    def ratio_at(self, group_size: int) -> float:
        """Return the ratio with groups of another size."""
        noise = self._noise(group_size) / self.num_prompts
        return self.signal / noise if noise > 0 else math.copysign(math.inf, self.signal) if self.signal else math.nan

    def critical_prompts(self, group_size: int) -> float:
        """Return how many prompts, with groups of this size, make signal and noise equal; infinite without a signal."""
        return self._noise(group_size) / self.signal if self.signal > 0 else math.inf

    def fewest_prompts(self, group_size: int) -> float:
        """Return the lower bound of the critical prompts, with the signal two standard errors larger than estimated."""
        largest = max(self.signal, 0.0) + 2 * self.signal_error
        return self._noise(group_size) / largest if largest > 0 else math.inf

    def _noise(self, group_size: int) -> float:
        """Return A + W for groups of another size. W falls as 1/(G - 1): a group's own mean costs one of its rollouts."""
        return max(self.of_prompts, 0.0) + self.of_rollouts * (self.group_size - 1) / (group_size - 1)


def gradient_noise(gram_MM: torch.Tensor, half_M: Sequence[int], num_prompts: int, group_size: int) -> GradientNoise:
    """Estimate signal and noise with their errors.

    gram_MM: inner products of the M gradients of halves, each the mean over its num_prompts // 2 prompts. half_M: which half
    each is of; each half occurs twice. num_prompts, group_size: of an iteration. ValueError for fewer than three halves, of
    which no error can be told.
    """
    half = torch.tensor(half_M)
    halves = half.unique().tolist()
    if len(halves) < 3:
        raise ValueError(f"{len(halves)} halves: at least 3 are needed for an error")

    def estimated(keep_M: torch.Tensor) -> GradientNoise:
        return _components(gram_MM[keep_M][:, keep_M].double(), half[keep_M], num_prompts, group_size)

    without = [estimated(half != left_out) for left_out in halves]
    whole = estimated(torch.ones_like(half, dtype=torch.bool))
    return GradientNoise(
        **{
            **vars(whole),
            "signal_error": _jackknife_error(without, lambda noise: noise.signal),
            "ratio_error": _jackknife_error(without, lambda noise: noise.ratio),
        }
    )


def _components(gram_MM: torch.Tensor, half_M: torch.Tensor, num_prompts: int, group_size: int) -> GradientNoise:
    same_MM, self_MM = half_M[:, None] == half_M, torch.eye(len(half_M), dtype=torch.bool)
    signal = float(gram_MM[~same_MM].mean())
    again = float(gram_MM[same_MM & ~self_MM].mean())
    itself = float(gram_MM[self_MM].mean())
    return GradientNoise(
        signal=signal,
        of_prompts=num_prompts // 2 * (again - signal),
        of_rollouts=num_prompts // 2 * (itself - again),
        num_prompts=num_prompts,
        group_size=group_size,
    )


def _jackknife_error(without: Sequence[GradientNoise], of: Callable[[GradientNoise], float]) -> float:
    """Return the standard error of an estimate from its values with one half left out each."""
    value_U = torch.tensor([of(noise) for noise in without], dtype=torch.float64)
    return float((len(value_U) - 1) ** 0.5 * value_U.std(correction=0))
