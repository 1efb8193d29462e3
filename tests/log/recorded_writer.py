"""A writing process with `recorder.c` preloaded, which notes what it submits and what is acknowledged.

Run as `-m tests.log.recorded_writer FOLDER DURABILITY COMMITS [SYNCHRONOUS]`. It notes what it finds, commits, closes,
opens again, commits once more as much, and ends without closing. Checkpoints come often.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import sys
import threading
from pathlib import Path

from bon_server.config.settings import LogConfig
from bon_server.core.types import Durability
from bon_server.log.read.reader import LogReader
from bon_server.log.spool import writer
from bon_server.log.spool.spool import Spool
from tests.log.records import record

NOTES = ctypes.CDLL(None)
GROUPS = (1, 3, 1, 2)
"""Records committed at once, over and over."""


def note(text: str) -> None:
    """Puts a line between the operations on files."""
    NOTES.recorder_note(text.encode())


def note_found(folder: Path) -> None:
    """What an earlier writer left: from now on callers may be told of it."""
    with LogReader(folder) as reader:
        for one in reader.records():
            note(f"found {one.request_id} {one.ordinal}")


async def commit(spool: Spool, request_id: str) -> None:
    """Commits one record."""
    note(f"submitted {request_id}")
    ordinal = await spool.commit(record(request_id))
    note(f"acknowledged {request_id} {ordinal}")


async def commit_groups(spool: Spool, run: str, commits: int) -> None:
    """So many groups one after the other, with a checkpoint now and then."""
    for number, size in zip(range(commits), itertools.cycle(GROUPS)):
        await asyncio.gather(*(commit(spool, f"{run}-{number}-{i}") for i in range(size)))
        if number % 4 == 3:
            spool._writer.checkpoint(at_least_pages=1)


async def main(folder: Path, config: LogConfig, commits: int, synchronous: str | None = None) -> None:
    """Two runs."""
    spool = Spool.open(folder, config)
    note_found(folder)
    if synchronous:
        spool._writer._database.pragma("synchronous", synchronous)
    await commit_groups(spool, "first", commits)
    spool.close()
    spool = Spool.open(folder, config)
    if synchronous:
        spool._writer._database.pragma("synchronous", synchronous)
    await commit_groups(spool, "second", commits)


if __name__ == "__main__":
    writer.CHECKPOINT_PAGES = 1 << 30  # only where this module asks for one, so that each run does the same
    config = LogConfig(durability=Durability(sys.argv[2]), linger_ms=1, async_sync_ms=60_000)
    asyncio.run(main(Path(sys.argv[1]), config, int(sys.argv[3]), *sys.argv[4:]))
    assert threading.active_count() > 1, "the writer was not closed"
    os._exit(0)
