"""Make the golden trajectories: `python tests/golden.py` writes tests/golden/*.json, a file per method and SDE.

Each is a short run of the tiny world, with its records (times apart) and, of the trained weights, a hash, the norm of each
tensor and its projections on 16 keyed random directions. `house/test_golden.py` runs them again: where processor, torch and
number of threads are those of the making everything must be equal to the bit; elsewhere weights to 1e-4 and rewards to 1e-3.
A change that should not alter numbers proves so by leaving these files alone.
"""

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from flash_grpo.algorithm import keyed
from flash_grpo.records.files import read_records
from flash_grpo.records.schema import COST_PHASES
from flash_grpo.run import loop, stop
from flash_grpo.run.compose import CONF

FOLDER = Path(__file__).parent / "golden"
SDES = ("linear", "flow")
METHODS = {
    "full": ("method=full",),
    "window": ("method=window",),
    "flash": (),
    "shared_noise": ("ablations=shared_noise",),
    "lora": (
        "optim=lora",
        "model.guidance=4.5",
        "method.kl_weight=0.04",
        "training.optimizer_steps=2",
        "rollout.batch=24",
        "training.batch=12",
    ),
}
WITHOUT_SDE = {name: (f"ablations={name}",) for name in ("finite_difference", "neighbor_grpo", "awm", "diffusion_nft")}
COMMON = (
    "device=cpu",
    "budget.pflop=null",
    "budget.iterations=3",
    "rollout.layout.group_size=8",
    "evaluation.every=1",
    "evaluation.sampler.noises_per_prompt=1",
    "optim.optimizer.lr=3e-4",
)
COST_TIMES = tuple(f"{name}_seconds" for name in ("device", "server", *COST_PHASES))
TIMES = ("seconds", "evaluation_seconds", *COST_TIMES)
DIRECTIONS = 16
OVERRIDES = METHODS | WITHOUT_SDE
CASES = [*((method, sde) for method in METHODS for sde in SDES), *((method, "linear") for method in WITHOUT_SDE)]


def file_of(method: str, sde: str) -> Path:
    return FOLDER / f"{method}_{sde}.json"


def made(method: str, sde: str, runs_root: Path) -> dict[str, Any]:
    """Run the case and return what its file holds, `machine` apart."""
    overrides = [*COMMON, *OVERRIDES[method], f"schedule.noise={sde}", f"runs_root={runs_root}", "run_name=golden"]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    loaded = loop.load(cfg, loop.claim(cfg, cfg.run_name))
    loaded.to_the_end(stop.StopRequest())
    weights = {name: value.detach() for name, value in loaded.trainer.policy.trainable().items()}
    return {
        "overrides": [*COMMON, *OVERRIDES[method], f"schedule.noise={sde}"],
        "records": [_without_times(record) for record in read_records(loaded.path)],
        "sha256": hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest(),
        "weights": {name: _digest(name, value) for name, value in weights.items()},
    }


def machine() -> dict[str, Any]:
    """What decides about the last bit of a sum."""
    cpuinfo = Path("/proc/cpuinfo")
    named = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "processor": named[0].split(":")[1].strip() if named else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": 1,
    }


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def _digest(name: str, value: torch.Tensor) -> list[float]:
    """The norm, then the projections, nine digits each."""
    flat = value.flatten().double()
    directions = keyed.normal((DIRECTIONS, flat.numel()), "golden", name).double()
    return [float(f"{number:.9g}") for number in [flat.norm(), *(directions @ flat)]]


def main() -> None:
    chosen = sys.argv[1:]
    for method, sde in CASES:
        if chosen and method not in chosen and f"{method}_{sde}" not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            content = {"machine": machine(), **made(method, sde, Path(folder))}
        FOLDER.mkdir(exist_ok=True)
        file_of(method, sde).write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    main()
