"""The log: no room, a failed disk, damage, and a clock that is set back. Crashes and kills: see `elsewhere`."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import namedtuple
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Completion, Outcome
from tests.fakes import says
from tests.faults.case import NOTHING_SAMPLED, OK, PUSHBACK, Case, Check, only_logged
from tests.faults.lifecycle import Gate
from tests.faults.place import PROMPT, Kind, Place, Seen, see
from tests.log.broken_database import BrokenDatabase
from tests.waiting import until

FULL, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
LOW_WATER_BYTES = 1 << 20


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
        await place.until_health("NOT_SERVING")
        place.policy.started.clear()
        for _ in range(20):
            assert (await see(place.generate(request_id="meanwhile"))).ended is FULL
        assert place.policy.started == [], "refused before anything is sampled"
        assert (await place.metrics())["bon_log_full"] == 1
        assert (await see(place.generate(request_id="before"))).answer.replayed, "a stored answer needs no room"
    await place.until_health("SERVING")
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
            await place.until_health("NOT_SERVING")
            place.policy.started.clear()
            seen = await see(make(place))
            gate.open()
            assert (await running).ended is OK
        await place.until_health("SERVING")
        return seen

    return happens


def feedback(place: Place) -> Any:
    """Feedback on a request that is in the log."""
    return place.stub.RecordFeedback(pb.RecordFeedbackRequest(request_id="before", name="thumbs_up", bool_value=True))


def _logged(*ids: str) -> Check:
    return only_logged("what was under way is logged", *ids)


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
        await place.until_health("NOT_SERVING")
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

CASES = [*NO_ROOM, *FAILED]
