"""Read the unit prices, `prices.toml`: what one piece of work costs on one device, in seconds, each with its source.

Whoever reports or plans a cost multiplies counts by these prices. Standard library only.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PRICES = Path(__file__).with_name("prices.toml")
SHOWN = "flash_grpo/records/prices.toml"  # the file's name in titles and messages
WORK = ("forward", "recompute", "backward", "decode")


@dataclass(frozen=True, kw_only=True)
class Price:
    """seconds: of one device for one piece of work. source: how they are known."""

    seconds: float
    source: str

    @property
    def known(self) -> str:
        """Return in a word how the price is known: measured, estimated or reported."""
        return self.source.replace(":", " ").replace(",", " ").split()[0]


@dataclass(frozen=True, kw_only=True)
class ModelPrices:
    """The prices of a model's work on one video, on one device; `prices.toml` defines each piece of work.

    name: of the model's configuration. words: its name in prose. evaluations_per_velocity: as its recipe runs it. reward:
    the name of the reward that its recipe trains on.
    """

    name: str
    words: str
    device: str
    evaluations_per_velocity: int
    reward: str
    forward: Price
    recompute: Price
    backward: Price
    decode: Price

    @property
    def velocity(self) -> float:
        """Return the seconds of one velocity, guided as in the model's recipe, without gradient."""
        return self.evaluations_per_velocity * self.forward.seconds

    @property
    def update(self) -> float:
        """Return the seconds of replaying one state with gradient: forward, recomputed forward, backward, AdamW."""
        return self.evaluations_per_velocity * (self.forward.seconds + self.recompute.seconds + self.backward.seconds)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """All prices: models by name, rewards (seconds of one scored video) by name."""

    models: dict[str, ModelPrices]
    rewards: dict[str, Price]

    def model(self, name: str) -> ModelPrices:
        """Return a model's prices; ValueError names the known models."""
        return _known(self.models, name, "model")

    def reward(self, name: str) -> Price:
        """Return a reward's price; ValueError names the known rewards."""
        return _known(self.rewards, name, "reward")


@cache
def load_prices(file: Path = PRICES) -> Prices:
    """Read a file of prices. KeyError or TypeError if an entry lacks something: every price must have a source."""
    content = tomllib.loads(file.read_text())
    models = {name: _model(name, entry) for name, entry in content["models"].items()}
    return Prices(models=models, rewards={name: Price(**entry) for name, entry in content["rewards"].items()})


def _model(name: str, entry: dict[str, Any]) -> ModelPrices:
    work: dict[str, Any] = {key: Price(**entry[key]) for key in WORK}
    return ModelPrices(name=name, **entry | work)


def _known(entries: dict[str, Any], name: str, kind: str) -> Any:
    if name not in entries:
        raise ValueError(f"no prices of the {kind} {name!r}: {SHOWN} has {', '.join(entries)}")
    return entries[name]
