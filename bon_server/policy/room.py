"""Whether a second engine fits into memory beside the one that serves."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from bon_server.errors import StartupError
from bon_server.weights import ModelFiles

PROCESS_BYTES = 1 << 30
"""What a process with torch and vLLM in it takes besides weights and cache."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def refuse_without_room(files: ModelFiles, dtype: str, kv_cache_bytes: int) -> None:
    """Compares what the test and then the engine of a model need with what is available now.

    dtype: the engine's. The test is over before the engine starts, so the larger of the two counts. Raises StartupError
    with both numbers; where the system does not tell what is available, nothing is refused.
    """
    parameters = sum(math.prod(shape) for shape in files.shapes.values())
    test_bytes = parameters * ITEM_BYTES["float32"]
    engine_bytes = parameters * ITEM_BYTES[dtype] + kv_cache_bytes
    needed_bytes = PROCESS_BYTES + max(test_bytes, engine_bytes)
    available_bytes = available()
    if available_bytes is not None and needed_bytes > available_bytes:
        raise StartupError(
            f"model {files.directory}: beside the policy in use it needs {needed_bytes >> 20} MiB of memory, "
            f"and {available_bytes >> 20} MiB are available"
        )


def available() -> int | None:
    """Bytes to be had without swapping, by the kernel's estimate and the control group's limit; None: unknown."""
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
        limits.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10)
    with suppress(OSError, ValueError):  # `max` where there is no limit
        limit_bytes = int((CGROUP / "memory.max").read_text())
        limits.append(limit_bytes - int((CGROUP / "memory.current").read_text()) + _reclaimable())
    return min(limits, default=None)


def _reclaimable() -> int:
    """Bytes of the control group that are only a cache of files."""
    lines = (CGROUP / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))
