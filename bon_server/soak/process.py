"""What a process holds, from outside: Linux's /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """One look at one process, its children not included."""

    rss_bytes: int
    """Resident memory."""
    descriptors: int
    """Open files, sockets and pipes."""
    threads: int


def footprint(pid: int) -> Footprint | None:
    """None: it is gone, or waits only to be reaped."""
    folder = Path("/proc", str(pid))
    try:
        lines = (folder / "status").read_text(encoding="ascii", errors="replace").splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        if "VmRSS" not in status:
            return None
        rss_kib = int(status["VmRSS"].split()[0])
        return Footprint(rss_kib << 10, sum(1 for _ in (folder / "fd").iterdir()), int(status["Threads"]))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
