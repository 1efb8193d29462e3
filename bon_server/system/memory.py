"""How much memory there is for models: of the machine, of the control group this process is in, of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bon_server.core.errors import StartupError

PROCESS_BYTES = 1 << 30
"""Of a process with torch and vLLM in it, and of what a forward pass holds for a moment."""
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
GPU_ANSWERS_S = 120.0
"""Importing torch is most of it."""
ASK_THE_GPU = "import torch; print(*torch.cuda.mem_get_info(0))"


@dataclass(frozen=True, slots=True)
class MemoryRoom:
    """Memory of one kind."""

    where: str
    """`machine`, `control group` or `GPU`."""
    total_bytes: int
    free_bytes: int
    """Of these, what can be had now; files in the kernel's memory give way, so they count as free."""


def host_room(proc: Path = PROC, cgroups: Path = CGROUPS) -> MemoryRoom:
    """The machine's memory, or that of a control group (as containers have) where that leaves less."""
    return min((_machine(proc), *_groups(proc, cgroups)), key=lambda room: room.free_bytes)


def gpu_room() -> MemoryRoom | None:
    """Memory of the first GPU; None where torch sees none. Imports torch. Raises StartupError where the GPU fails.

    A process of its own asks, for seconds: asking makes a CUDA context, some hundred MiB that this one would keep, with
    which a GPU in exclusive mode takes no engine.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    asking = [sys.executable, "-c", ASK_THE_GPU]
    try:
        done = subprocess.run(asking, capture_output=True, text=True, check=False, timeout=GPU_ANSWERS_S)
    except subprocess.TimeoutExpired:
        raise StartupError(f"the GPU cannot be used: it says nothing for {GPU_ANSWERS_S:g} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StartupError(f"the GPU cannot be used: {said}")
    free_bytes, total_bytes = map(int, done.stdout.split())
    return MemoryRoom("GPU", total_bytes, free_bytes)


def _machine(proc: Path) -> MemoryRoom:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:  # not Linux
        page = os.sysconf("SC_PAGE_SIZE")
        total_bytes = page * os.sysconf("SC_PHYS_PAGES")
        return MemoryRoom("machine", total_bytes, total_bytes)
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return MemoryRoom("machine", kib["MemTotal"] << 10, kib["MemAvailable"] << 10)


def _groups(proc: Path, cgroups: Path) -> Iterator[MemoryRoom]:
    """Each limit that holds for this process, of version 2 or 1 of control groups; those above it count as well."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits(cgroups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits(cgroups / "memory", path, *names)


def _limits(root: Path, path: str, limit: str, usage: str, inactive: str) -> Iterator[MemoryRoom]:
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(root) and (total_bytes := _number(folder / limit)) is not None:
            stat = dict(line.split() for line in _lines(folder / "memory.stat"))
            used_bytes = (_number(folder / usage) or 0) - int(stat.get(inactive, 0))
            yield MemoryRoom("control group", total_bytes, max(0, total_bytes - used_bytes))


def _number(path: Path) -> int | None:
    """None: no such file, or `max`."""
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
