"""Freed memory is allocated again without the kernel having to map it anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

LARGE_BLOCKS = """
import resource, sys
from bon_server.offline.train.train import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("mallopt is not there")
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(256 << 20)
    block[::4096] = b"x" * (len(block) // 4096)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(memory: str) -> int:
    """Pages that the kernel mapped for a block of 256 MiB when one as large had been freed before."""
    command = [sys.executable, "-c", LARGE_BLOCKS, memory]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "mallopt" in done.stderr:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_the_second_large_block_takes_the_memory_of_the_first() -> None:
    """Of huge pages of 2 MiB there would be 128 without."""
    assert faults("kept") < 64 < faults("given back")
