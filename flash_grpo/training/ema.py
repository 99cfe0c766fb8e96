"""Exponential moving average of the trained parameters: what evaluation and export use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flash_grpo.algorithm import ranges


class EMA:
    """Average with decay min((1 + n)/(10 + n), decay) after optimizer step n, every `every` steps (release: 0.9, 8).

    phase: averages after the steps n for which n + phase is a multiple of `every`. The release counts from 0 and so averages
    after 7, 15, 23, … steps: phase 1.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float, every: int, phase: int = 0):
        ranges.number("optim.ema.decay", decay, at_least=0, at_most=1)
        ranges.whole("optim.ema.every", every)
        ranges.whole("optim.ema.phase", phase, at_least=0)
        self.parameters, self.decay, self.every, self.phase = parameters, decay, every, phase
        self.shadow = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, optimizer_step: int) -> None:
        if (optimizer_step + self.phase) % self.every:
            return
        keep = min((1 + optimizer_step) / (10 + optimizer_step), self.decay)
        for name, parameter in self.parameters.items():
            self.shadow[name].lerp_(parameter.detach(), 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged parameters into the model inside the block, and the trained ones back afterwards."""
        trained = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.load(self.shadow)
        try:
            yield
        finally:
            self.load(trained)

    @torch.no_grad()
    def load(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages by parameter name."""
        return self.shadow

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.shadow = {name: state[name].to(parameter.device) for name, parameter in self.parameters.items()}
