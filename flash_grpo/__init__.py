"""Benchmark and ablation suite for GRPO on video diffusion models.

To read the code, begin with `algorithm.method` (what a method is), `algorithm.plans` and `algorithm.weighting` (its mask and
its weight), `algorithm.denoise` (taking and replaying a step), `training.trainer` (an iteration) and `run.loop` (a run).
`records.schema` describes the files that a run writes; `ablations/` has one difference between methods per file.

The names below are for programs that use the suite as a library; each is imported when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_PLACES = {
    "Method": "algorithm.method",
    "FullTrajectory": "algorithm.plans",
    "SlidingWindow": "algorithm.plans",
    "OneStep": "algorithm.plans",
    "uniform": "algorithm.weighting",
    "inverse_lambda": "algorithm.weighting",
    "inverse_first_term": "algorithm.weighting",
    "group_relative": "algorithm.advantage",
    "flow_schedule": "algorithm.schedule",
    "rectification_factor": "algorithm.sde",
    "denoise": "algorithm.denoise",
    "noise_keys": "algorithm.noise",
    "Tree": "algorithm.noise",
    "Prompts": "algorithm.batches",
    "Layout": "algorithm.batches",
    "Policy": "algorithm.protocols",
    "Reward": "algorithm.protocols",
    "RewardError": "algorithm.protocols",
    "Scores": "algorithm.types",
    "counted": "algorithm.cost",
    "expected": "algorithm.cost",
}
__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
