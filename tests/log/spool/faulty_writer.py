"""A writing process with `faults.c` preloaded; prints one JSON document. Run as `-m tests.log.spool.faulty_writer`."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from bon_server.config.settings import LogConfig
from bon_server.core.errors import BonError, LogError
from bon_server.core.types import Durability
from bon_server.log.spool import spool as spool_module
from bon_server.log.spool.spool import Spool
from tests.log.records import record
from tests.waiting import until

FAULTS = ctypes.CDLL(None)


async def commit_one(spool: Spool, request_id: str) -> str:
    """`ok`, or the type of the error."""
    try:
        await spool.commit(record(request_id))
    except BonError as error:
        return type(error).__name__
    return "ok"


async def count_syncs(folder: Path, durability: str, synchronous: str | None = None) -> dict[str, Any]:
    """Of ten commits one after the other and of a hundred at once: groups, syncs, and what each group was ahead of.

    `ahead` has, for each group, the writes to the write-ahead log that were not synced when it was acknowledged.
    """
    ahead = []
    acknowledge = spool_module.answer

    def watched(*arguments: Any) -> None:
        ahead.append(FAULTS.faults_unsynced_wal_writes())
        acknowledge(*arguments)

    spool_module.answer = watched  # type: ignore[assignment]
    config = LogConfig(durability=Durability(durability), linger_ms=20, group_records=10, async_sync_ms=50)
    with closing(Spool.open(folder, config)) as spool:
        if synchronous:
            spool._writer._database.pragma("synchronous", synchronous)
        before = FAULTS.faults_syncs()
        for i in range(10):
            await spool.commit(record(f"r{i}"))
        await asyncio.gather(*(spool.commit(record(f"g{i}")) for i in range(100)))
        syncs = FAULTS.faults_syncs() - before
        counted = dict(spool.syncs)
        await asyncio.sleep(0.5)
        late = FAULTS.faults_unsynced_wal_writes()
    return {"ahead": ahead, "syncs": syncs, "counted": counted, "unsynced_later": late}


async def fail_a_sync(folder: Path) -> dict[str, Any]:
    """What commits end in before, while and after a sync fails; each commit is a group of its own."""
    failures: list[LogError] = []
    with closing(Spool.open(folder, LogConfig(group_records=1), on_failure=failures.append)) as spool:
        before = await commit_one(spool, "before")
        FAULTS.faults_fail_next_sync(errno.EIO)
        during = await asyncio.gather(*(commit_one(spool, f"during{i}") for i in range(3)))
        after = await commit_one(spool, "after")
        seen = spool.failure is not None
    return {"before": before, "during": during, "after": after, "failures": len(failures), "seen": seen}


async def fail_a_background_sync(folder: Path) -> dict[str, Any]:
    """Durability `async`: what a commit ends in after the sync of an earlier one has failed."""
    failures: list[LogError] = []
    config = LogConfig(durability=Durability.ASYNC, async_sync_ms=500)
    with closing(Spool.open(folder, config, on_failure=failures.append)) as spool:
        await commit_one(spool, "first")  # starts the write-ahead log, whose header is always synced
        await until(lambda: spool.syncs["background"] == 1)
        FAULTS.faults_fail_next_sync(errno.EIO)
        before = await commit_one(spool, "before")
        await until(lambda: spool.failure is not None)
        after = await commit_one(spool, "after")
    return {"before": before, "after": after, "failures": len(failures)}


async def fail_a_checkpoint(folder: Path) -> dict[str, Any]:
    """What a commit ends in after a sync failed while pages were moved into the database."""
    failures: list[LogError] = []
    with closing(Spool.open(folder, on_failure=failures.append)) as spool:
        await commit_one(spool, "first")
        before = await commit_one(spool, "before")
        FAULTS.faults_fail_next_sync(errno.EIO)
        spool._writer.checkpoint(at_least_pages=1)
        after = await commit_one(spool, "after")
    return {"before": before, "after": after, "failures": len(failures)}


async def fill_the_disk(folder: Path) -> dict[str, Any]:
    """What commits end in before, while and after there is no room."""
    failures: list[LogError] = []
    with closing(Spool.open(folder, on_failure=failures.append)) as spool:
        before = await commit_one(spool, "before")
        FAULTS.faults_fail_writes(errno.ENOSPC)
        during = [await commit_one(spool, f"during{i}") for i in range(3)]
        try:
            # More than SQLite's cache holds, so that writing fails before the commit.
            spool.append([record(f"many{i}", rewards=[0.5] * 500) for i in range(10)])
        except BonError as error:
            during.append(type(error).__name__)
        FAULTS.faults_fail_writes(0)
        after = [await commit_one(spool, f"after{i}") for i in range(3)]
    return {"before": before, "during": during, "after": after, "failures": len(failures)}


EXPERIMENTS: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
    "count": count_syncs,
    "sync": fail_a_sync,
    "background": fail_a_background_sync,
    "checkpoint": fail_a_checkpoint,
    "full": fill_the_disk,
}

if __name__ == "__main__":
    experiment = EXPERIMENTS[sys.argv[1]]
    sys.stdout.write(json.dumps(asyncio.run(experiment(Path(sys.argv[2]), *sys.argv[3:]))))
