"""Cancellation: callers who leave. What was scored is in the log, and nothing else runs on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc

from bon_server.core.types import Completion, FinishReason, Outcome
from tests.fakes import PARTIAL, ScriptedPolicy, says
from tests.faults.asking import (
    Asks,
    all_scored,
    both,
    first_two_answer,
    hang,
    hang_scoring,
    only_first_is_scored,
    samples,
    scores,
    tokenises,
)
from tests.faults.case import NOTHING_LOGGED, NOTHING_SAMPLED, OK, Case, Check, in_log, only_logged
from tests.faults.place import Kind, Place, Seen, see
from tests.serving.running import open_files
from tests.waiting import forever, until

CANCELLED = grpc.StatusCode.CANCELLED
FOUR = {"limits.max_candidates_in_flight": 4, "limits.max_n": 4, "defaults.n": 4}
TWO_SCORED = ("scored", "scored", "cancelled", "cancelled")
ONE_SCORED = ("scored", "cancelled", "cancelled", "cancelled")


def cancelled(*statuses: str) -> Check:
    """It is in the log as such."""
    return in_log("cancelled", *statuses, error="RequestCancelled")


def _texts_kept(place: Place, seen: Seen) -> None:
    row = place.row()
    assert [candidate.text for candidate in row.candidates] == ["answer ", "answer !", PARTIAL, PARTIAL]
    assert (row.selected_index, row.candidates[1].reward) == (None, 8.0)


PARTIAL_TEXTS = Check("with the texts as far as they came", _texts_kept)


async def in_the_queue(place: Place) -> Seen:
    """One takes all permits, two wait, the first of these leaves."""
    released = asyncio.Event()

    async def wait(index: int) -> Completion:
        await released.wait()
        return says(f"answer {index}")

    place.policy.script = wait
    first = place.generate(request_id="first")
    await until(lambda: place.policy.running == 4)
    second, third = place.generate(), place.generate(request_id="third", n=2)
    await until(lambda: place.admission.queued == 6)
    second.cancel()
    await until(lambda: place.admission.queued == 2)
    assert len(place.policy.started) == 4, "who waits is not sampled"
    released.set()
    await asyncio.gather(first, third)
    return await see(second)


async def while_committing(place: Place) -> Seen:
    with place.slow_disk():
        call = place.generate()
        await until(lambda: all_scored(place))
        await asyncio.sleep(0.05)
        call.cancel()
        await asyncio.sleep(0.05)
        assert place.server.attempts.running == 1, "the commit goes on without its caller"
    return await see(call)


async def after_the_answer(place: Place) -> Seen:
    call = place.generate()
    await call
    call.cancel()
    return await see(call)


async def unread_stream(place: Place) -> Seen:
    """The server is held up by flow control in the middle of sending when the caller leaves."""

    async def long_or_never(index: int) -> Completion:
        if index == 3:
            await forever()
        return Completion(f"{index}" * 3_000_000, (), FinishReason.STOP)

    place.policy.script = long_or_never
    stream = place.stream()
    await until(lambda: place.reward_model.calls.total() == 3)
    await asyncio.sleep(0.2)
    stream.cancel()
    return await see(stream)


async def unread_stream_that_fails(place: Place) -> Seen:
    """The failure finds nobody; it must not end up with the event loop, which would print it."""
    failed = asyncio.Event()

    async def long_or_failing(index: int) -> Completion:
        if index == 3:
            await failed.wait()
            raise ZeroDivisionError("canary-7c41")
        return Completion(f"{index}" * 3_000_000, (), FinishReason.STOP)

    place.policy.script = long_or_failing
    stream = place.stream()
    await until(lambda: place.reward_model.calls.total() == 3)
    await asyncio.sleep(0.2)
    failed.set()
    await until(lambda: place.server.attempts.running == 0)
    stream.cancel()
    return await see(stream)


async def broken_connection(place: Place) -> Seen:
    place.policy.script = first_two_answer
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(place.server.address, options=options) as channel:
        call = Place(place.server, channel, place.log, request_id=place.request_id).generate()
        await until(lambda: samples(2)(place))
    return await see(call)


async def tried_again(place: Place) -> Seen:
    await Asks(sample=first_two_answer, leaves_when=samples(2))(place)
    await until(lambda: place.server.attempts.running == 0)
    place.policy.script = ScriptedPolicy().script
    return await see(place.generate())


def _second_attempt(place: Place, seen: Seen) -> None:
    assert (seen.answer.replayed, seen.answer.n_scored) == (False, 4)
    assert [(row.attempt, row.outcome) for row in place.rows()] == [(1, Outcome.CANCELLED), (2, Outcome.OK)]


SYNTHETIC_PACE = {
    "policy.model": "synthetic:tokens_per_s=4000,tokens=20",
    "reward.models": ["synthetic:seconds=0.002"],
    "limits.max_candidates_in_flight": 64,
}
MANY, AT_ONCE, WARM = 1_000, 25, 200
MOST_GROWTH_BYTES = 16 << 20
"""Of 800 cancels: 20 KB each would be more."""


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def many_cancels(place: Place) -> Seen:
    """At random moments, calls and streams; memory is looked at when gRPC's own pools are warm."""
    dice = random.Random(7)

    async def ask_and_leave(number: int) -> grpc.StatusCode:
        ask = place.stream if number % 2 else place.generate
        call = ask(request_id=f"{place.request_id}-{number}", n=dice.randint(1, 16))
        seeing = asyncio.create_task(see(call))
        await asyncio.sleep(dice.expovariate(100))
        call.cancel()
        ended = (await seeing).ended
        assert isinstance(ended, grpc.StatusCode)
        return ended

    ends, warm = set(), (0, 0)
    for batch in range(0, MANY, AT_ONCE):
        if batch == WARM:
            await place.at_rest()
            warm = open_files(), _resident_bytes()
        ends |= set(await asyncio.gather(*(ask_and_leave(batch + i) for i in range(AT_ONCE))))
    await place.at_rest()
    assert open_files() == warm[0]
    assert _resident_bytes() - warm[1] < MOST_GROWTH_BYTES
    assert ends == {OK, CANCELLED}, "the moments were not random"
    return Seen(CANCELLED)


def _all_in_order(place: Place, seen: Seen) -> None:
    rows = place.rows()
    assert {row.outcome for row in rows} >= {Outcome.OK, Outcome.CANCELLED}
    assert all([candidate.index for candidate in row.candidates] == list(range(row.n)) for row in rows)


CASES = [
    *both(
        "cancel before tokenising",
        Asks(encode=forever, leaves_when=tokenises),
        CANCELLED,
        NOTHING_SAMPLED,
        NOTHING_LOGGED,
    ),
    *both("cancel while sampling", Asks(sample=hang, leaves_when=samples(4)), CANCELLED, cancelled(*["cancelled"] * 4)),
    *both(
        "cancel while sampling, some scored",
        Asks(sample=first_two_answer, leaves_when=samples(2)),
        CANCELLED,
        cancelled(*TWO_SCORED),
        PARTIAL_TEXTS,
    ),
    *both(
        "cancel between sampling and scoring",
        Asks(score=only_first_is_scored, leaves_when=scores(3)),
        CANCELLED,
        cancelled(*ONE_SCORED),
    ),
    *both(
        "cancel while scoring and sampling",
        Asks(sample=first_two_answer, score=only_first_is_scored, leaves_when=scores(1, sampled=2)),
        CANCELLED,
        cancelled(*ONE_SCORED),
    ),
    *both(
        "cancel while scoring",
        Asks(score=hang_scoring, leaves_when=scores(4)),
        CANCELLED,
        cancelled(*["cancelled"] * 4),
    ),
    *both(
        "cancel while committing",
        Asks(slow_disk=True, leaves_when=all_scored),
        CANCELLED,
        in_log("ok", *["scored"] * 4),
    ),
    Case(
        name="cancel while committing: the commit goes on",
        happens=while_committing,
        ends=CANCELLED,
        checks=(in_log("ok", *["scored"] * 4),),
    ),
    Case(name="cancel after the answer", happens=after_the_answer, ends=OK, checks=(in_log("ok", *["scored"] * 4),)),
    Case(
        name="cancel of a stream that was never read",
        happens=unread_stream,
        ends=CANCELLED,
        checks=(cancelled("scored", "scored", "scored", "cancelled"),),
    ),
    Case(
        name="cancel of an unread stream that has failed since",
        happens=unread_stream_that_fails,
        ends=CANCELLED,
        checks=(in_log("failed", "scored", "scored", "scored", "failed", error="InternalError"),),
    ),
    Case(name="connection breaks", happens=broken_connection, ends=CANCELLED, checks=(cancelled(*TWO_SCORED),)),
    Case(
        name="cancelled and tried again",
        happens=tried_again,
        ends=OK,
        checks=(Check("sampled anew, as the second attempt", _second_attempt),),
    ),
    Case(
        name="cancel in the queue",
        happens=in_the_queue,
        ends=CANCELLED,
        checks=(only_logged("the others are answered and logged", "first", "third"),),
        kind=Kind(FOUR),
    ),
    Case(
        name="1,000 cancels in a row",
        happens=many_cancels,
        ends=CANCELLED,
        checks=(Check("memory and file descriptors flat", _all_in_order),),
        kind=Kind(SYNTHETIC_PACE, scripted=False),
    ),
]
