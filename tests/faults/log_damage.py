"""The log: damage done beneath a running server, and a clock that is set back."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import grpc

from bon_server.log.seal.sealing import seal
from bon_server.serving import attempt
from tests.faults.case import NOTHING_SAMPLED, OK, Case, Check, replayed
from tests.faults.place import Kind, Place, Seen, opened, see

# Damage, done beneath a running server


async def damaged_row(place: Place) -> Seen:
    """One letter of a completion: what is left is a record like any other, but for its digest."""
    await place.generate()
    database = apsw.Connection(str(place.log / "spool.sqlite"))
    record = database.execute("SELECT record FROM records").get
    assert b"answer 0" in record
    database.execute("UPDATE records SET record = ?", (record.replace(b"answer 0", b"answer X"),))
    database.close()
    place.policy.started.clear()
    return await see(place.generate())


def damaged_segment(damage: Callable[[Path], object]) -> Callable[[Place], Awaitable[Seen]]:
    """The retry of a request whose segment was damaged: never sampled a second time as if nothing had been."""

    async def happens(place: Place) -> Seen:
        await place.generate()
        await place.at_rest()
        seal(place.server.spool, 1 << 26, 86_400.0)
        (segment,) = place.log.glob("segments/*/*/*.parquet")
        damage(segment)
        place.policy.started.clear()
        return await see(place.generate())

    return happens


def flip(segment: Path) -> None:
    """One bit in the middle."""
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)


def truncate(segment: Path) -> None:
    """Cuts off the second half."""
    os.truncate(segment, segment.stat().st_size // 2)


async def foreign_file(place: Place) -> Seen:
    (place.log / "segments").mkdir(exist_ok=True)
    (place.log / "segments" / "notes.txt").write_text("mine")
    return await see(place.generate())


async def torn_tail(place: Place) -> Seen:
    """Killed in the middle of writing to the write-ahead log: a copy of the folder whose last bytes are not there."""
    for number in range(3):
        await place.generate(request_id=f"torn-{number}")
    crashed = place.log.parent / "crashed" / "log"
    crashed.mkdir(parents=True)
    for name in ("spool.sqlite", "spool.sqlite-wal"):
        (crashed / name).write_bytes((place.log / name).read_bytes())
    tail = crashed / "spool.sqlite-wal"
    os.truncate(tail, tail.read_bytes().rindex(b"torn-2"))
    async with opened(crashed.parent, Kind()) as again:
        again.begin("")
        assert [row.request_id for row in again.records()] == ["torn-0", "torn-1"]
        seen = await see(again.generate(request_id="torn-1"))
        assert not (await again.generate(request_id="torn-2")).replayed, "which was never synced whole"
        await again.at_baseline()
    return seen


DAMAGE = [
    Case(
        name="damaged row of the spool, its request retried",
        happens=damaged_row,
        ends=grpc.StatusCode.INTERNAL,
        checks=(NOTHING_SAMPLED,),
        kind=Kind(),
        damages=("row_damaged",),
    ),
    *[
        Case(
            name=f"{what} segment, its request retried",
            happens=damaged_segment(damage),
            ends=grpc.StatusCode.INTERNAL,
            checks=(NOTHING_SAMPLED,),
            kind=Kind(),
            damages=problems,
        )
        for what, damage, problems in (
            ("bit flipped in a", flip, ("segment_changed",)),
            ("truncated", truncate, ("segment_size", "segment_unreadable")),
            ("missing", Path.unlink, ("segment_missing",)),
        )
    ],
    Case(
        name="foreign file in the folder",
        happens=foreign_file,
        ends=OK,
        kind=Kind(),
        damages=("foreign_file",),
    ),
    Case(
        name="torn tail",
        happens=torn_tail,
        ends=OK,
        checks=(replayed("what was acknowledged before is replayed"),),
        kind=Kind(),
    ),
]

# Time


async def clock_set_back(place: Place) -> Seen:
    """Each request comes a day before the one before."""
    now = [datetime.now(UTC)]

    class Clock:
        @staticmethod
        def now(zone: object) -> datetime:
            now[0] -= timedelta(days=1)
            return now[0]

    place.patch.setattr(attempt, "datetime", Clock)
    for number in range(3):
        await place.generate(request_id=f"r{number}")
    seal(place.server.spool, 1 << 26, 86_400.0)
    await place.generate(request_id="r3")
    return await see(place.generate(request_id="r0"))


def _in_order(place: Place, seen: Seen) -> None:
    rows = place.rows()
    assert [row.request_id for row in rows] == ["r0", "r1", "r2", "r3"]
    assert [row.ordinal for row in rows] == [1, 2, 3, 4]
    assert sorted((row.created_at for row in rows), reverse=True) == [row.created_at for row in rows]
    assert seen.answer.replayed


TIME = [
    Case(
        name="clock set back",
        happens=clock_set_back,
        ends=OK,
        checks=(Check("order and ids stay sound, a retry is replayed", _in_order),),
        kind=Kind(),
    )
]

CASES = [*DAMAGE, *TIME]
