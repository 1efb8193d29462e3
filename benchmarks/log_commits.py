"""How fast the log acknowledges: closed loop by waiting writers, open loop at a fixed rate, beside the bare disk.

The load is made in the log's own process, as in the server: encoding and the event loop share Python's one lock with
the writer thread, which is part of what is measured.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.comparison import spread
from bon_server.config.settings import LogConfig
from bon_server.core.types import Durability
from bon_server.log.record import Record
from bon_server.log.spool.spool import Spool

SYNC_BYTES = 16 << 10
"""About what one record writes."""
SYNC_FILE_BYTES = 16 << 20
"""The write-ahead log is written over and over at about this size, too."""


@dataclass(frozen=True)
class CommitSizes:
    """How much is measured."""

    waiters: tuple[int, ...]
    """Each of them waits for its record before it brings the next."""
    rate_per_s: float
    """Of the open loop: half of the load that is aimed at."""
    closed_s: float
    """Length of a pass of the closed loop."""
    open_s: float
    """Length of a pass of the open loop."""
    repetitions: int
    """Each with a log of its own."""


FULL = CommitSizes((1, 16, 64, 256), rate_per_s=500.0, closed_s=5.0, open_s=20.0, repetitions=3)
QUICK = CommitSizes((1, 16, 64, 256), rate_per_s=500.0, closed_s=1.0, open_s=4.0, repetitions=1)


@dataclass(frozen=True)
class Commits:
    """One pass."""

    seconds: float
    latencies_ms: list[float]
    """(records,) from when it was due (open loop) or brought (closed loop) to its acknowledgement."""

    @property
    def records_per_s(self) -> float:
        """Acknowledged."""
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, percent: int) -> float:
        """Nearest of 100 quantiles."""
        return quantiles(self.latencies_ms, n=100, method="inclusive")[percent - 1]


async def closed_loop(spool: Spool, records: Iterator[Record], waiters: int, seconds: float) -> Commits:
    """`waiters` records in flight at any time."""
    latencies_ms: list[float] = []
    began = time.perf_counter()

    async def waiter() -> None:
        while (now := time.perf_counter()) - began < seconds:
            await spool.commit(next(records))
            latencies_ms.append((time.perf_counter() - now) * 1e3)

    async with asyncio.TaskGroup() as group:
        for _ in range(waiters):
            group.create_task(waiter())
    return Commits(time.perf_counter() - began, latencies_ms)


async def open_loop(
    spool: Spool,
    records: Iterator[Record],
    rate_per_s: float,
    seconds: float,
    seed: int,
    going: Callable[[], bool] = lambda: True,
) -> Commits:
    """Records come at random moments, whether or not earlier ones are done; a late start counts as waiting.

    Until so many seconds are over, or it is no longer `going`.
    """
    arrivals, latencies_ms = random.Random(seed), list[float]()
    began = due = time.perf_counter()

    async def commit(record: Record, due: float) -> None:
        await spool.commit(record)
        latencies_ms.append((time.perf_counter() - due) * 1e3)

    async with asyncio.TaskGroup() as group:
        while (due := due + arrivals.expovariate(rate_per_s)) - began < seconds and going():
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(commit(next(records), due))
    return Commits(time.perf_counter() - began, latencies_ms)


async def measure_commits(
    folder: Path, records: Iterator[Record], durability: Durability, sizes: CommitSizes
) -> dict[str, Any]:
    """Figures of one durability: `closed_loop` by number of waiters, and `open_loop`."""
    closed: dict[int, list[Commits]] = {waiters: [] for waiters in sizes.waiters}
    opened = []
    syncs: Counter[str] = Counter()
    for repetition in range(sizes.repetitions):
        with closing(Spool.open(folder, LogConfig(durability=durability))) as spool:
            await closed_loop(spool, records, 16, min(1.0, sizes.closed_s))  # files grow, statements are prepared
            opened.append(await open_loop(spool, records, sizes.rate_per_s, sizes.open_s, seed=repetition))
            for waiters, passes in closed.items():
                passes.append(await closed_loop(spool, records, waiters, sizes.closed_s))
            syncs.update(spool.syncs)
        shutil.rmtree(folder)
    return {
        "closed_loop": {str(waiters): figures(passes) for waiters, passes in closed.items()},
        "open_loop": {"rate_per_s": sizes.rate_per_s, **figures(opened)},
        "syncs": dict(syncs),
    }


def figures(passes: list[Commits]) -> dict[str, Any]:
    """Median, least and most over the passes."""
    return {
        "records_per_s": spread([each.records_per_s for each in passes]),
        "p50_ms": spread([each.percentile_ms(50) for each in passes]),
        "p99_ms": spread([each.percentile_ms(99) for each in passes]),
        "longest_ms": spread([max(each.latencies_ms) for each in passes]),
    }


def measure_disk(folder: Path, repetitions: int = 2_000) -> dict[str, float]:
    """Writing as much as a record and syncing it, over and over in one file, with nothing else going on."""
    descriptor = os.open(folder / "disk", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(descriptor, bytes(SYNC_FILE_BYTES))
    os.fsync(descriptor)
    seconds = []
    for number in range(repetitions):
        began = time.perf_counter()
        os.pwrite(descriptor, bytes(SYNC_BYTES), number * SYNC_BYTES % SYNC_FILE_BYTES)
        os.fdatasync(descriptor)
        seconds.append(time.perf_counter() - began)
    os.close(descriptor)
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {"sync_p50_ms": cuts[49] * 1e3, "sync_p99_ms": cuts[98] * 1e3}
