"""Kills writing processes at random moments, many a second.

Run as `-m tests.log.spool.killed_writer FOLDER KILLS SEED`.

Every child is forked from this process, which has all imports done: starting Python would take most of the time. A
child opens the log, commits, and writes `request_id ordinal` of each acknowledged record to a pipe. When it has been
killed, this process recovers the log as the next writer would, and checks it. Prints one JSON document; an
AssertionError is the failure.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bon_server.config.settings import LogConfig
from bon_server.core.types import Durability
from bon_server.log.read.reader import LogReader, Where
from bon_server.log.record import Record
from bon_server.log.spool import writer
from bon_server.log.spool.spool import Spool
from tests.log.records import record

LONGEST_LIFE_S = 0.08
WAITERS = 8
CANDIDATES = 16


def expected(request_id: str) -> Record:
    """What a child commits under this id: nothing but the id decides."""
    rewards = random.Random(request_id)
    return record(request_id, rewards=[rewards.random() for _ in range(CANDIDATES)])


async def commit_until_killed(folder: Path, run: int, config: LogConfig, acknowledged: int) -> None:
    """The life of a child."""
    spool = Spool.open(folder, config)
    numbers = itertools.count()

    async def waiter() -> None:
        while True:
            request_id = f"{run}-{next(numbers)}"
            ordinal = await spool.commit(expected(request_id))
            os.write(acknowledged, f"{request_id} {ordinal}\n".encode())

    await asyncio.gather(*(waiter() for _ in range(WAITERS)))


def one_life(folder: Path, run: int, config: LogConfig, life_s: float) -> dict[str, int]:
    """Forks a child, kills it, and returns what it had had acknowledged: ordinals by request id."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            asyncio.run(commit_until_killed(folder, run, config, writing))
        finally:
            os._exit(1)  # nothing of the parent may run on in the child, whatever happened
    os.close(writing)
    time.sleep(life_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().decode().splitlines(keepends=True)
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return {request_id: int(ordinal) for request_id, ordinal in pairs}


def check(found: Iterator[Record], acknowledged: dict[str, int], run: int) -> int:
    """The newest records are of this run, whole, each there once, and all that were acknowledged; returns how many."""
    ordinals = {}
    count = 0
    for one in found:
        assert one == replace(expected(one.request_id), ordinal=one.ordinal), (
            f"run {run}: {one.request_id} is not whole"
        )
        assert one.request_id.startswith(f"{run}-")
        ordinals[one.request_id] = one.ordinal
        count += 1
    assert len(ordinals) == count, f"run {run}: a record is there twice"
    lost = acknowledged.items() - ordinals.items()
    assert not lost, f"run {run}: acknowledged and lost: {sorted(lost)[:5]}"
    return count


def main(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """One log, that many writers."""
    moments = random.Random(seed)
    writer.CHECKPOINT_PAGES = 60  # so that kills meet checkpoints too
    acknowledged = records = unclean = last = 0
    for run in range(kills):
        durability = list(Durability)[run % 3]  # a process that is killed loses nothing under any of them
        config = LogConfig(durability=durability, linger_ms=1, async_sync_ms=5, group_records=4)
        there = one_life(folder, run, config, moments.uniform(0, LONGEST_LIFE_S))
        spool = Spool.open(folder)
        spool.close()
        with LogReader(folder) as reader:
            records += check(reader.records(Where(after_ordinal=last)), there, run)
            last = reader.last_ordinal
        assert spool.recovery.records == records, f"run {run}: an earlier record is gone or doubled"
        acknowledged += len(there)
        unclean += spool.recovery.wal_frames > 0
    with LogReader(folder) as reader:
        assert len({one.request_id for one in reader.records()}) == records
    return {"kills": kills, "acknowledged": acknowledged, "records": records, "unclean_ends": unclean}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
