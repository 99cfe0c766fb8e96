"""Know the devices that a run may be planned for, from `devices.toml`: peak rate and memory, each with its source."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from flash_grpo.run.settings import ConfigError

DEVICES = Path(__file__).with_name("devices.toml")
DEFAULT, CPU = "h100", "cpu"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of device. tflops: peak TFLOP/s in bfloat16. gigabytes: memory; 0 where it is the host's.

    reached: the share of the peak that all work is assumed to reach; None for `unit_prices.REACHED`, by kind of work.
    """

    name: str
    words: list[str]
    tflops: float
    gigabytes: float
    source: str
    reached: float | None = None

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU


@cache
def devices() -> dict[str, Device]:
    """Read the table of devices, by name."""
    entries = tomllib.loads(DEVICES.read_text())
    return {name: Device(name=name, **entry) for name, entry in entries.items()}


def device_named(text: str, key: str) -> Device:
    """Return the device that a text means: a name of the table, Slurm's type, or what torch calls a GPU.

    key: where the text stands, for the ConfigError if no entry is meant.

    >>> device_named("NVIDIA H100 80GB HBM3", "").name, device_named("a100-sxm4-40gb", "").name
    ('h100', 'a100-40gb')
    """
    meant = [(len(word), device) for device in devices().values() for word in device.words if word in text.lower()]
    if not meant:
        raise ConfigError(
            f"{key}={text}: not in flash_grpo/planning/devices.toml, which has {', '.join(devices())}; choose the nearest "
            "by planning.device=..."
        )
    return max(meant, key=lambda pair: pair[0])[1]


def chosen_device(cfg_device: str | None, launcher: Mapping[str, Any] | None, run_device: str) -> tuple[Device, str]:
    """Return the device that runs are planned for, and why this one.

    cfg_device: `planning.device`. launcher: the settings of `hydra.launcher`, None of a single run. run_device: `device`.
    """
    if cfg_device:
        return device_named(cfg_device, "planning.device"), "planning.device"
    settings = launcher or {}
    if settings.get("gpu_type"):
        return device_named(settings["gpu_type"], "hydra.launcher.gpu_type"), "hydra.launcher.gpu_type"
    elsewhere = "gpu_type" in settings
    if elsewhere and settings["gpus_per_node"]:
        return devices()[DEFAULT], "the default: hydra.launcher.gpu_type or planning.device names another"
    if not elsewhere and run_device != CPU and torch.cuda.is_available():
        return device_named(torch.cuda.get_device_name(), "planning.device"), "this machine's"
    return devices()[CPU], "no GPU asked for; planning.device=h100 plans for one"
