"""Keep the memory of freed tensors in the process, on CPUs."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's names, M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
GIBIBYTE = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc take tensors of up to a GiB from its heap, and give no less than that back to the system.

    Else every large tensor is mapped anew, and its pages are zeroed when they are first touched: a twentieth of a run's time
    on the tiny world. What the user's own environment says of malloc holds; another libc is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt(MMAP_THRESHOLD, GIBIBYTE)
    mallopt(TRIM_THRESHOLD, GIBIBYTE)
