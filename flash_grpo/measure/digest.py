"""Summarize the measurements of `flash_grpo.mechanism` in a few lines, most of them with an interval and n."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

Measurement = dict[str, Any]


def digest(measurements: Sequence[Measurement]) -> str:
    """Return a line per finding, for each SDE noise schedule in turn."""
    lines = []
    for noise in dict.fromkeys(measurement["noise"] for measurement in measurements):
        under_noise = [measurement for measurement in measurements if measurement["noise"] == noise]
        lines += [line for digested in (_norms, _shares, _cosines) for line in digested(under_noise, noise)]
    return "\n".join(lines)


def _norms(measurements: Sequence[Measurement], noise: str) -> Iterator[str]:
    """Yield the correlation of gradient norms with λ, and their variation over steps 0-9 before and after rectification."""
    norms = _of("gradient_norm", measurements)
    if not norms:
        return
    lambdas = {measurement["step"]: measurement["lambda"] for measurement in norms}
    mean = {
        weighting: torch.tensor([_mean(norms, step=step, weighting=weighting) for step in lambdas])
        for weighting in ("uniform", "inverse_lambda")
    }
    points = torch.stack([mean["uniform"].log(), torch.tensor(list(lambdas.values())).log()])
    spread = {
        weighting: float(values[:10].std(correction=0) / values[:10].mean()) for weighting, values in mean.items()
    }
    correlation = float(torch.corrcoef(points)[0, 1])
    yield f"{noise:6s} gradient norm against λ: log-log correlation {correlation:.3f} over {len(lambdas)} steps"
    yield (
        f"{noise:6s} coefficient of variation over steps 0-9: {spread['uniform']:.3f}, "
        f"rectified {spread['inverse_lambda']:.3f}"
    )


def _shares(measurements: Sequence[Measurement], noise: str) -> Iterator[str]:
    shares = _of("variance_share", measurements)
    for source in dict.fromkeys(measurement["source"] for measurement in shares):
        values = [measurement["value"] for measurement in shares if measurement["source"] == source]
        yield f"{noise:6s} within-group reward variance explained by the {source}: {_estimate(values)}"


def _cosines(measurements: Sequence[Measurement], noise: str) -> Iterator[str]:
    cosines = _of("alignment", measurements)
    for method in dict.fromkeys(measurement["method"] for measurement in cosines):
        values = [measurement["value"] for measurement in cosines if measurement["method"] == method]
        yield f"{noise:6s} alignment of {method}: {_estimate(values)}"


def _of(quantity: str, measurements: Sequence[Measurement]) -> list[Measurement]:
    return [measurement for measurement in measurements if measurement["quantity"] == quantity]


def _estimate(values: Sequence[float]) -> str:
    """Return the mean, its 95 % interval and the number of values, which lie between -1 and 1.

    The normal distribution behind the interval is on Fisher's scale, arctanh, so that the interval stays there too.
    """
    z_M = torch.tensor(values, dtype=torch.float64).arctanh()
    margin = 1.96 * float(z_M.std()) / len(values) ** 0.5
    mean, low, high = (z_M.mean() + torch.tensor([0.0, -margin, margin], dtype=torch.float64)).tanh().tolist()
    return f"{mean:.4f} [{low:.4f}, {high:.4f}] (95 %, n = {len(values)})"


def _mean(measurements: Sequence[Measurement], **where: Any) -> float:
    """Return the mean value of the measurements whose fields equal `where`."""
    values = [item["value"] for item in measurements if all(item[key] == value for key, value in where.items())]
    return sum(values) / len(values)
