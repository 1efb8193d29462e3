"""Load: no room, and readers who do not read."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Completion, FinishReason
from tests.fakes import ScriptedPolicy
from tests.faults.case import OK, PUSHBACK, Case, Check, replayed
from tests.faults.leaving import FOUR
from tests.faults.lifecycle import Gate
from tests.faults.place import PROMPT, Kind, Place, Seen, see
from tests.waiting import until

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
FOUR_AND_FOUR = {**FOUR, "limits.max_candidates_queued": 4, "limits.max_queue_share": 1.0}


async def fill(place: Place) -> tuple[Gate, list[Any]]:
    """Four candidates run and four wait."""
    gate = Gate(place)
    calls = [place.generate(request_id=f"{place.request_id}-{i}") for i in range(2)]
    await until(lambda: place.admission.queued == 4)
    place.policy.started.clear()
    return gate, calls


def full(make: Any) -> Any:
    """A call to a full server."""

    async def happens(place: Place) -> Seen:
        gate, calls = await fill(place)
        seen = await see(make(place))
        assert place.policy.started == [], "nothing is sampled for who is refused"
        gate.open()
        await asyncio.gather(*calls)
        return seen

    return happens


def _two(place: Place, seen: Seen) -> None:
    assert [row.request_id for row in place.rows()] == [f"{place.request_id}-{i}" for i in range(2)]


async def many_small(place: Place) -> Seen:
    """Eight requests of one candidate fill it as two of four do."""
    gate = Gate(place)
    calls = [place.generate(request_id=f"{place.request_id}-{i}", n=1) for i in range(8)]
    await until(lambda: place.policy.running == 4 and place.admission.queued == 4)
    seen = await see(place.generate(n=1))
    gate.open()
    await asyncio.gather(*calls)
    return seen


async def tokenises_nothing(place: Place) -> Seen:
    tokenised: list[None] = []

    async def count() -> None:
        tokenised.append(None)

    gate, calls = await fill(place)
    place.policy.prepare = count
    seen = await see(place.generate())
    score = pb.ScoreRequest(tokens=pb.Tokens(ids=[65]), completions=["x"])
    assert (await see(place.stub.Score(score))).ended is UNAVAILABLE
    assert tokenised == []
    gate.open()
    await asyncio.gather(*calls)
    return seen


async def retry_of_an_answer(place: Place) -> Seen:
    stored = await place.generate()
    gate, calls = await fill(place)
    seen = await see(place.generate())
    assert seen.answer.best == stored.best
    gate.open()
    await asyncio.gather(*calls)
    return seen


async def share_of_the_queue(place: Place) -> Seen:
    """One connection has filled its share; another one may still wait."""
    gate = Gate(place)
    calls = [place.generate(request_id="a")]
    await until(lambda: place.policy.running == 4)
    calls += [place.generate(request_id=f"b{i}", n=1) for i in range(2)]
    await until(lambda: place.admission.queued == 2)
    seen = await see(place.generate(n=1))
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(place.server.address, options=options) as channel:
        other = asyncio.create_task(see(Place(place.server, channel, place.log, request_id="c").generate(n=1)))
        await until(lambda: place.admission.queued == 3)
        gate.open()
        assert (await other).ended is OK
    await asyncio.gather(*calls)
    return seen


RETRIES = (
    '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "30s",'
    ' "maxBackoff": "30s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}'
)


async def retry_policy(place: Place) -> Seen:
    """`grpc-retry-pushback-ms` is honoured by gRPC clients themselves, long before their backoff of 30 s."""
    gate, calls = await fill(place)
    async with grpc.aio.insecure_channel(place.server.address, options=(("grpc.service_config", RETRIES),)) as channel:
        waiting = asyncio.create_task(
            see(Place(place.server, channel, place.log, request_id=place.request_id).generate(15))
        )
        await asyncio.sleep(0.1)
        assert not waiting.done()
        gate.open()
        seen = await waiting
    await asyncio.gather(*calls)
    return seen


CAPACITY_PER_S, OPEN_LOOP_S = 100, 2.0
"""Candidates: 4 at a time, each 40 ms."""


async def twice_the_capacity(place: Place) -> Seen:
    """Open loop: callers come whether others are answered or not."""

    async def sample(index: int) -> Completion:
        await asyncio.sleep(0.04)
        return await ScriptedPolicy().script(index)

    place.policy.script = sample
    count = int(2 * CAPACITY_PER_S * OPEN_LOOP_S)
    calls = []
    for number in range(count):
        calls.append(asyncio.create_task(see(place.generate(request_id=f"{place.request_id}-{number}", n=1))))
        await asyncio.sleep(OPEN_LOOP_S / count)
    seen = await asyncio.gather(*calls)
    ended = Counter(one.ended for one in seen)
    assert set(ended) == {OK, UNAVAILABLE}, ended
    assert all(one.refused.pushback_ms for one in seen if one.refused)
    assert len(place.rows()) == ended[OK], "those who were refused are not in the log, all others are"
    return next(one for one in seen if one.refused)


def _long(index: int) -> Completion:
    """More than gRPC takes for somebody who does not read."""
    return Completion(f"{index}" * 700_000, (), FinishReason.STOP)


async def stalled_reader(place: Place) -> Seen:
    """Holds up nobody: the permits are back although nothing was read."""

    async def at_length(index: int) -> Completion:
        return _long(index)

    place.policy.script = at_length
    stalled = place.stream()
    await until(lambda: [row.request_id for row in place.rows()] == [place.request_id])
    place.policy.script = ScriptedPolicy().script
    assert (await see(place.generate(request_id="other"))).ended is OK
    await until(lambda: place.server._service.running == 0)
    return await see(stalled)


def _its_answer_is_there(place: Place, seen: Seen) -> None:
    assert place.row().outcome.value == "ok"


async def slow_reader(place: Place) -> Seen:
    async def at_length(index: int) -> Completion:
        return _long(index)

    place.policy.script = at_length
    events = []
    async for event in place.stream(view=pb.CANDIDATE_VIEW_WINNER):
        events.append(event)
        await asyncio.sleep(0.05)
    return Seen(OK, events)


def _all_events(place: Place, seen: Seen) -> None:
    kinds = [event.WhichOneof("event") for event in seen.answer]
    assert (kinds.count("candidate"), kinds[-1]) == (4, "final")


def _answered(place: Place, seen: Seen) -> None:
    assert seen.answer.n_scored == 4 and not seen.answer.replayed


TWO_LOGGED = Check("who was admitted is answered and logged", _two)
IS_FULL = ("the server is full",)


def _crowded(
    name: str,
    happens: Any,
    ends: Any = UNAVAILABLE,
    *checks: Check,
    variant: str = "",
    says: Any = (),
    settings: Any = None,
) -> Case:
    kind = Kind({**FOUR_AND_FOUR, **(settings or {})})
    return Case(name=name, variant=variant, happens=happens, ends=ends, checks=checks, says=says, kind=kind)


CASES = [
    *[
        _crowded("full", full(make), UNAVAILABLE, PUSHBACK, TWO_LOGGED, variant=variant, says=IS_FULL)
        for variant, make in (
            ("Generate", lambda place: place.generate()),
            ("GenerateStream", lambda place: place.stream()),
            ("Score", lambda place: place.stub.Score(pb.ScoreRequest(text=PROMPT, completions=["x"]))),
        )
    ],
    _crowded("full of small requests", many_small, UNAVAILABLE, PUSHBACK, says=IS_FULL),
    _crowded("full: nothing is tokenised for who is refused", tokenises_nothing, UNAVAILABLE, PUSHBACK, says=IS_FULL),
    _crowded("full: a retry of what was answered", retry_of_an_answer, OK, replayed("`replayed`")),
    Case(
        name="more than there ever is room for",
        happens=lambda place: see(place.generate(n=1_000_000)),
        field="n",
        says=("1000000", "1 to 4"),
        kind=Kind(FOUR_AND_FOUR),
    ),
    _crowded("full: a caller with a retry policy", retry_policy, OK, Check("answered in the end", _answered)),
    _crowded(
        "queue filled by one connection",
        share_of_the_queue,
        UNAVAILABLE,
        PUSHBACK,
        says=("this caller has too much waiting",),
        settings={"limits.max_queue_share": 0.5},
    ),
    _crowded("twice the capacity, open loop, 2 s: who is refused", twice_the_capacity, UNAVAILABLE, PUSHBACK),
    _crowded(
        "stream that is not read",
        stalled_reader,
        EXHAUSTED,
        Check("its answer is logged", _its_answer_is_there),
        says=("nothing was read from the stream for 0.5 s",),
        settings={"limits.slow_reader_s": 0.5},
    ),
    _crowded("stream that is read slowly", slow_reader, OK, Check("all events", _all_events)),
]
