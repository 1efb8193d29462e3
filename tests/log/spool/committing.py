"""A process that commits until it is killed, and says what was acknowledged. Run as `-m tests.log.spool.committing`."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from bon_server.log.spool.spool import Spool
from tests.log.records import record

WAITERS = 8


async def commit_until_killed(folder: Path, run: str) -> None:
    """Prints `request_id ordinal` of each acknowledged record, at once and unbuffered."""
    spool = Spool.open(folder)
    numbers = itertools.count()

    async def waiter() -> None:
        while True:
            request_id = f"{run}-{next(numbers)}"
            ordinal = await spool.commit(record(request_id, rewards=[0.5] * 16))
            os.write(1, f"{request_id} {ordinal}\n".encode())

    await asyncio.gather(*(waiter() for _ in range(WAITERS)))


if __name__ == "__main__":
    asyncio.run(commit_until_killed(Path(sys.argv[1]), sys.argv[2]))
