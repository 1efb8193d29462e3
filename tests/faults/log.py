"""The log: no room, a failed disk, damage, and a clock that is set back. Crashes and kills: see `elsewhere`."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import namedtuple
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.log.sealing import seal
from bon_server.serving import attempts
from bon_server.types import Completion, Outcome
from tests.fakes import says
from tests.faults.case import NOTHING_SAMPLED, OK, PUSHBACK, Case, Check, Kind
from tests.faults.lifecycle import Gate
from tests.faults.place import PROMPT, Place, Seen, opened, see
from tests.log.broken_database import BrokenDatabase
from tests.waiting import SOON_S, until

FULL, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
LOW_WATER_BYTES = 1 << 20


async def until_health(place: Place, says: str) -> None:
    """Waits until a load balancer would hear this."""
    async with asyncio.timeout(SOON_S):
        while await place.health() != says:  # noqa: ASYNC110 -- another side's
            await asyncio.sleep(0.01)


# No room


@contextmanager
def small_files(limit_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def full_while_committing(place: Place) -> Seen:
    await place.generate(request_id="before")

    async def long(index: int) -> Completion:
        return says("long " * 20_000)

    place.policy.script = long
    with small_files((place.log / "spool.sqlite-wal").stat().st_size):
        seen = await see(place.generate())
        await until_health(place, "NOT_SERVING")
        place.policy.started.clear()
        for _ in range(20):
            assert (await see(place.generate(request_id="meanwhile"))).ended is FULL
        assert place.policy.started == [], "refused before anything is sampled"
        assert (await place.metrics())["bon_log_full"] == 1
        assert (await see(place.generate(request_id="before"))).answer.replayed, "a stored answer needs no room"
    await until_health(place, "SERVING")
    assert (await see(place.generate())).ended is OK, "what did not fit is answered once there is room"
    return seen


def _recovered(place: Place, seen: Seen) -> None:
    assert [(row.request_id, row.attempt, row.outcome) for row in place.rows()] == [
        ("before", 1, Outcome.OK),
        (place.request_id, 1, Outcome.OK),
    ]


@contextmanager
def low_water(place: Place) -> Iterator[None]:
    """Less free space than the server wants to keep."""
    statvfs = namedtuple("statvfs", "f_bavail f_frsize")
    place.patch.setattr(os, "statvfs", lambda folder: statvfs(LOW_WATER_BYTES - 1, 1))
    try:
        yield
    finally:
        place.patch.setattr(os, "statvfs", lambda folder: statvfs(1 << 30, 1))


def below_the_mark(make: Callable[[Place], Any]) -> Callable[[Place], Awaitable[Seen]]:
    """A call that comes when there is little room; what is under way is answered and logged."""

    async def happens(place: Place) -> Seen:
        await place.generate(request_id="before")
        gate = Gate(place)
        running = asyncio.create_task(see(place.generate(request_id="running")))
        await until(lambda: place.policy.running == 4)
        with low_water(place):
            await until_health(place, "NOT_SERVING")
            place.policy.started.clear()
            seen = await see(make(place))
            gate.open()
            assert (await running).ended is OK
        await until_health(place, "SERVING")
        return seen

    return happens


def feedback(place: Place) -> Any:
    """Feedback on a request that is in the log."""
    return place.stub.RecordFeedback(pb.RecordFeedbackRequest(request_id="before", name="thumbs_up", bool_value=True))


def _logged(*ids: str) -> Check:
    def holds(place: Place, seen: Seen) -> None:
        assert [row.request_id for row in place.rows()] == list(ids)

    return Check("what was under way is logged", holds)


async def behind(place: Place) -> Seen:
    """The writer cannot keep up, because another program holds the database."""
    with place.slow_disk():
        first = asyncio.create_task(see(place.generate(request_id="first", n=16)))
        await until(lambda: place.server.spool.queued_records == 1)
        place.policy.started.clear()
        seen = await see(place.generate())
        assert await place.health() == "SERVING", "it passes by itself"
    assert (await first).ended is OK
    return seen


NO_ROOM = [
    Case(
        name="disk full while committing",
        happens=full_while_committing,
        ends=FULL,
        checks=(PUSHBACK, Check("once there is room, the same request is answered", _recovered)),
        kind=Kind({"log.min_free_bytes": 0}),
    ),
    *[
        Case(
            name="disk nearly full",
            variant=variant,
            happens=below_the_mark(make),
            ends=FULL,
            checks=(PUSHBACK, NOTHING_SAMPLED, _logged("before", "running")),
            kind=Kind({"log.min_free_bytes": LOW_WATER_BYTES}),
        )
        for variant, make in (
            ("Generate", lambda place: place.generate()),
            ("GenerateStream", lambda place: place.stream()),
            ("Score", lambda place: place.stub.Score(pb.ScoreRequest(text=PROMPT, completions=["x"]))),
            ("RecordFeedback", feedback),
        )
    ],
    Case(
        name="log's writer behind",
        happens=behind,
        ends=UNAVAILABLE,
        checks=(PUSHBACK, NOTHING_SAMPLED, _logged("first")),
        kind=Kind({"log.queue_bytes": 1_000}),
    ),
]

# A failed disk


def failed_disk(error: Exception) -> Callable[[Place], Awaitable[Seen]]:
    """The disk says so when it is waited for; what is on it then is unknown, so nothing is ever acknowledged again."""

    async def happens(place: Place) -> Seen:
        await place.generate(request_id="before")
        writer: Any = place.server.spool._writer
        database = writer._database
        writer._database = BrokenDatabase(database, error)
        seen = await see(place.generate())
        writer._database = database
        later = await see(place.generate(request_id="later"))
        assert (later.ended, later.said) == (UNAVAILABLE, seen.said)
        assert place.server.broken is not None
        await until_health(place, "NOT_SERVING")
        return seen

    return happens


FAILED = [
    Case(
        name=f"{what} while committing: the server stops",
        happens=failed_disk(error),
        ends=UNAVAILABLE,
        checks=(PUSHBACK, _logged("before")),
        kind=Kind(),
        ends_server=True,
    )
    for what, error in (
        ("fsync error", apsw.IOError("disk I/O error")),
        ("damaged database", apsw.CorruptError("malformed")),
        ("bug", RuntimeError("bug")),
    )
]

# Damage, done beneath a running server


async def damaged_row(place: Place) -> Seen:
    await place.generate()
    database = apsw.Connection(str(place.log / "spool.sqlite"))
    database.execute("UPDATE records SET record = zeroblob(length(record))")
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


def _replayed(place: Place, seen: Seen) -> None:
    assert seen.answer.replayed


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
        checks=(Check("what was acknowledged before is replayed", _replayed),),
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

    place.patch.setattr(attempts, "datetime", Clock)
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

CASES = [*NO_ROOM, *FAILED, *DAMAGE, *TIME]
