"""Parts of a benchmark side by side: each lane is a process with its share of the CPUs.

Starting a server or a trainer keeps one core busy whatever there is, and small matrices are not computed twice as fast
by two. Lanes use what that leaves idle.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from benchmarks.arms.commands import end_at_sigterm
from bon_server.core.errors import ConfigError
from bon_server.system.child_process import live_and_die_with_parent


def usual_lanes() -> int:
    """Two where nothing but CPUs computes; one beside a GPU, which a second lane would have to share."""
    import torch

    return 1 if torch.cuda.is_available() else min(2, len(_cpus()))


def check_lanes(lanes: int) -> None:
    """Raises ConfigError: there are more lanes than CPUs, or none."""
    most = len(_cpus())
    if not 1 <= lanes <= most:
        raise ConfigError(f"lanes: {lanes} given; allowed are 1 to {most}, the CPUs that a process can be held to")


def in_lanes(lanes: int, do: Callable[..., None], *arguments: Any) -> None:
    """Calls `do(*arguments, lane, lanes)` in a process for each lane, and returns when all have returned.

    A single lane is done in this process. When one fails, or this is interrupted, the others are ended too: what they
    had finished stays. Raises ConfigError as `check_lanes` does; RuntimeError: a lane failed, for the reason that it
    has printed.
    """
    check_lanes(lanes)
    if lanes == 1:
        do(*arguments, 0, 1)
        return
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_lane, args=(do, arguments, lane, lanes), name=f"lane-{lane}") for lane in range(lanes)
    ]
    try:
        _start(processes)
        running = processes
        while running:
            wait([process.sentinel for process in running])
            running = [process for process in running if process.is_alive()]
            failed = [process.name for process in processes if process.exitcode]
            if failed:
                raise RuntimeError(f"{' and '.join(failed)} failed; the reason is printed above")
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()


def _start(processes: list[Any]) -> None:
    """Each inherits its CPUs from this thread: libraries count them as early as they are loaded."""
    cpus = _cpus()
    try:
        for lane, process in enumerate(processes):
            os.sched_setaffinity(0, cpus[lane :: len(processes)])
            process.start()
    finally:
        os.sched_setaffinity(0, cpus)


def _lane(do: Callable[..., None], arguments: tuple[Any, ...], lane: int, lanes: int) -> None:
    live_and_die_with_parent()
    end_at_sigterm()
    do(*arguments, lane, lanes)


def _cpus() -> list[int]:
    """That this process may use; one where a process cannot be held to some of them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
