"""Price a unit of each kind of work on a device: measured where there is a measurement, else estimated from FLOPs.

In this order:
1. `records/prices.toml`: seconds of this very model, at 480 x 832 x 81, on this kind of device.
2. `docs/measured/*.json`, what `python -m flash_grpo.bench` printed on this kind of device: FLOPs / the rate that was reached.
3. The device's peak in `devices.toml`, of which the same share is assumed as the 1.3B reached on the H100 (`REACHED`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flash_grpo.algorithm.types import UnitFlops
from flash_grpo.planning.devices import Device, device_named
from flash_grpo.planning.model import Model
from flash_grpo.records.prices import Price, load_prices
from flash_grpo.run.settings import ConfigError

MEASURED = Path(__file__).resolve().parents[2] / "docs" / "measured"
REAL_VIDEO = (81, 480, 832, 3)  # which prices.toml is for
RATED = {"forward": "rollout", "recompute": "update", "backward": "update", "decode": "decode"}  # the bench's phases
REACHED = {"forward": 0.367, "recompute": 0.352, "backward": 0.352, "decode": 0.0838}
"""Shares of the peak: 362.7, 348.3 and 82.94 TFLOP/s of 989.4, docs/measured/h100_bench_1p3b.json; decoding is in float32."""


@dataclass(frozen=True, kw_only=True)
class UnitPrices:
    """The price of each kind of work on one sample, on one device."""

    forward: Price
    recompute: Price
    backward: Price
    decode: Price

    def known(self) -> str:
        """Return 'measured' if all are, else 'estimated'."""
        return "measured" if all(price.known == "measured" for price in vars(self).values()) else "estimated"


def unit_prices(model: Model, device: Device) -> UnitPrices:
    """Return the prices of a model's work on a device."""
    return _listed(model, device) or _benched(model, device) or _assumed(model.flops, device)


def _listed(model: Model, device: Device) -> UnitPrices | None:
    """Return what prices.toml has of this model as its recipe runs it; None where it runs otherwise."""
    entry = load_prices().models.get(model.name)
    usual = model.checkpointing and model.lora and not model.compiled and not model.attention and model.compute == 2
    if not entry or not usual or model.video_shape != REAL_VIDEO or _meant(entry.device) != device.name:
        return None
    return UnitPrices(**{work: getattr(entry, work) for work in RATED})


def _benched(model: Model, device: Device) -> UnitPrices | None:
    """Return prices by the rates of a measurement on this kind of device, of the model that is nearest in FLOPs."""
    same = [
        bench
        for bench in _benches()
        if _meant(bench["device"]) == device.name
        and (bench.get("compile", False), bench.get("attention")) == (model.compiled, model.attention)
        and bench["dtype"] == ("bfloat16" if model.compute == 2 else "float32")
    ]
    if not same:
        return None
    nearest = min(same, key=lambda bench: abs(bench["tflop_per_forward"] - model.flops.forward / 1e12))
    exact = nearest["model"] == model.path and list(model.latent_shape) == nearest["latent"]
    return UnitPrices(**dict(_rated(model.flops, nearest, "measured" if exact else "estimated")))


def _rated(flops: UnitFlops, bench: dict[str, Any], known: str) -> Iterator[tuple[str, Price]]:
    for work, phase in RATED.items():
        rate, count = bench["phases"][phase]["tflop_per_second"], getattr(flops, work) / 1e12
        counted = f"{count:.4g} TFLOP / {rate:.4g} TFLOP/s of its {phase}"
        source = f"{known} by bench on {bench['device']}, {bench['file']}: {counted}"
        yield work, Price(seconds=count / rate, source=source)


def _assumed(flops: UnitFlops, device: Device) -> UnitPrices:
    def price(work: str) -> Price:
        count, share = getattr(flops, work) / 1e12, device.reached or REACHED[work]
        return Price(
            seconds=count / (share * device.tflops),
            source=f"estimated: {count:.4g} TFLOP / ({share:.3g} of {device.tflops:g} TFLOP/s, {device.source})",
        )

    return UnitPrices(**{work: price(work) for work in RATED})


def _meant(name: str) -> str:
    """Return the table's name of a device that a measurement names; '' for one that the table lacks."""
    try:
        return device_named(name, "").name
    except ConfigError:
        return ""


@cache
def _benches(folder: Path = MEASURED) -> list[dict[str, Any]]:
    """Read what benches of real models have printed; empty in a package without docs/."""
    found = []
    for file in sorted(folder.glob("*bench*.json")):
        bench = json.loads(file.read_text())
        phases = bench.get("phases", {})
        if all(phases.get(phase, {}).get("tflop_per_second") for phase in set(RATED.values())):
            found.append({"file": f"docs/measured/{file.name}", **bench})
    return found
