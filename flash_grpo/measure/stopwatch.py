"""Time a piece of work, and read the memory that it takes at its peak."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

LINUX = Path("/proc/self")


def forget_peak(gpu: bool) -> None:
    """Start a new measurement of peak memory."""
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    elif LINUX.is_dir():
        (LINUX / "clear_refs").write_text("5")  # see proc(5): resets VmHWM


def peak_gigabytes(gpu: bool) -> float | None:
    """Return the peak memory in GB: of tensors on a GPU, of the whole process on a CPU; None if the system has no number."""
    if gpu:
        return digits(torch.cuda.max_memory_allocated() / 1e9)
    if not LINUX.is_dir():
        return None
    status = dict(line.split(":", 1) for line in (LINUX / "status").read_text().splitlines())
    return digits(int(status["VmHWM"].split()[0]) * 1024 / 1e9)


def seconds(run: Callable[[], object], gpu: bool) -> float:
    """Return the wall seconds of `run()`, until a GPU has done all of it."""
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def digits(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")
