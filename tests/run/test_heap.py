"""The memory of freed tensors stays in the process, unless the user's environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from flash_grpo.run.heap import keep_freed_memory

keep_freed_memory()
for _ in range(20):
    torch.ones(16_000_000)  # 64 MB: more than glibc takes from its heap by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(environment: dict[str, str]) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_being_mapped_anew():
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    as_the_user_says = page_faults(own | {"MALLOC_ARENA_MAX": "1"})
    assert page_faults(own) < as_the_user_says - 18 * 64_000_000 // 65_536  # few systems have larger pages
