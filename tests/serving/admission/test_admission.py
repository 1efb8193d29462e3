"""Permits: bounded, in number and in time, over all and for each caller; none lost whatever is cancelled when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.config.settings import LimitsConfig
from bon_server.core.best_of_n import Stop
from bon_server.core.errors import DeadlinePassed, Unavailable
from bon_server.serving.admission.permits import Admission

IN_FLIGHT, QUEUED = 8, 12


def an_admission(in_flight: int, queued: int, **limits: Any) -> Admission:
    """One caller may fill the queue, unless limits say otherwise."""
    limits = {"max_queue_share": 1.0, "max_queue_s": 1e9} | limits
    return Admission(LimitsConfig(max_candidates_in_flight=in_flight, max_candidates_queued=queued, **limits))


def never() -> Stop:
    """A stop that nobody sets."""
    return asyncio.get_running_loop().create_future()


def stop_now(stop: Stop) -> None:
    """What a deadline does."""
    if not stop.done():
        stop.set_exception(DeadlinePassed("passed"))
        stop.exception()


@dataclass
class Holder:
    """A caller: wants `n`, keeps it until told to leave."""

    admission: Admission
    n: int
    order: list[Holder]
    stop: Stop = field(default_factory=never)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    caller: str = ""

    async def run(self) -> None:
        """Notes its turn and waits to be told to leave."""
        async with self.admission.permit(self.caller, self.n, self.stop):
            self.order.append(self)
            await self.leave.wait()


async def settle() -> None:
    """Lets everything that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def start(admission: Admission, sizes: Sequence[int]) -> tuple[list[Holder], list[asyncio.Task[None]]]:
    """Callers in the order of `sizes`; the first one's `order` is everyone's."""
    order: list[Holder] = []
    holders = [Holder(admission, n, order) for n in sizes]
    tasks = [asyncio.create_task(holder.run()) for holder in holders]
    await settle()
    return holders, tasks


async def finish(holders: Sequence[Holder], tasks: Sequence[asyncio.Task[None]]) -> None:
    """Everyone leaves as soon as they have had their turn."""
    for holder in holders:
        holder.leave.set()
    await asyncio.gather(*tasks)


async def test_permits_are_bounded_and_come_back() -> None:
    admission = an_admission(8, 8)
    holders, tasks = await start(admission, [5, 3])
    assert (admission.free, admission.queued) == (0, 0)
    await finish(holders, tasks)
    assert admission.free == 8


async def test_small_ones_do_not_overtake_large_ones() -> None:
    admission = an_admission(4, 100)
    holders, tasks = await start(admission, [3, 4, 1])
    assert admission.free == 1, "the last one fits, but it is not its turn"
    assert holders[0].order == [holders[0]]
    assert admission.queued == 5
    await finish(holders, tasks)
    assert holders[0].order == holders


async def test_a_full_queue_refuses_at_once_with_a_pushback() -> None:
    admission = an_admission(4, 4, retry_after_ms=700)
    holders, tasks = await start(admission, [4, 4])
    with pytest.raises(Unavailable) as refused:
        async with admission.permit("", 1, never()):
            pass
    assert refused.value.retry_after_ms == 700
    await finish(holders, tasks)
    async with admission.permit("", 4, never()):
        assert admission.free == 0


async def test_a_stopped_waiter_raises_its_reason_and_lets_the_next_one_in() -> None:
    admission = an_admission(4, 100)
    holders, tasks = await start(admission, [3, 4, 1])
    stop_now(holders[1].stop)
    with pytest.raises(DeadlinePassed):
        await tasks[1]
    await settle()
    assert holders[2] in holders[0].order, "the large one before it is gone"
    for holder in holders:
        holder.leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.free, admission.queued) == (4, 0)


async def test_a_waiter_cancelled_in_the_moment_of_its_turn_gives_it_back() -> None:
    admission = an_admission(4, 100)
    holders, tasks = await start(admission, [4, 4, 4])
    holders[0].leave.set()
    await tasks[0]  # the second one has its turn now, but has not run yet
    tasks[1].cancel()
    await settle()
    assert holders[0].order == [holders[0], holders[2]]
    holders[2].leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.free, admission.queued) == (4, 0)


async def test_a_failing_body_gives_its_permit_back() -> None:
    admission = an_admission(4, 100)
    with pytest.raises(ZeroDivisionError):
        async with admission.permit("", 4, never()):
            raise ZeroDivisionError
    assert admission.free == 4


# Fairness and bounds of one caller


async def test_one_caller_may_fill_only_its_share_of_the_queue() -> None:
    admission = an_admission(4, 8, max_queue_share=0.5)
    order: list[Holder] = []
    callers = ["greedy"] * 3 + ["other"]
    holders = [Holder(admission, 4 if i == 0 else 2, order, caller=caller) for i, caller in enumerate(callers)]
    tasks = [asyncio.create_task(holder.run()) for holder in holders]
    await settle()
    with pytest.raises(Unavailable, match="this caller"):
        admission.check("greedy", 1)
    admission.check("third", 2)
    with pytest.raises(Unavailable, match="the server"):
        admission.check("third", 3)
    await finish(holders, tasks)


async def test_a_share_smaller_than_a_request_still_lets_one_wait() -> None:
    admission = an_admission(4, 8, max_queue_share=0.01)
    holders, tasks = await start(admission, [4, 4])
    assert admission.queued == 4
    await finish(holders, tasks)


async def test_a_caller_who_asks_for_much_does_not_starve_the_others() -> None:
    """One caller keeps the queue full with requests of 4; another one always has one request of 1 there."""
    admission = an_admission(4, 100)
    order: list[Holder] = []
    greedy = [Holder(admission, 4, order, caller="greedy") for _ in range(20)]
    modest = [Holder(admission, 1, order, caller="modest") for _ in range(8)]
    tasks = [asyncio.create_task(holder.run()) for holder in (*greedy, *modest)]
    await settle()
    while not all(holder in order for holder in modest):
        for holder in list(order):
            holder.leave.set()
        await settle()
    got = sum(holder.n for holder in order if holder in greedy)
    assert got <= 16, "about as many as the 8 of the modest one, not all 80"
    await finish((*greedy, *modest), tasks)


# The bound in time


async def hold(admission: Admission, n: int, seconds: float) -> None:
    """Teaches how long permits are held."""
    async with admission.permit("teacher", n, never()):
        await asyncio.sleep(seconds)


async def test_the_queue_is_no_longer_than_what_starts_in_time() -> None:
    """Permits of 4 are held for at least 50 ms, so in 10 ms less than one starts."""
    admission = an_admission(4, 1000, max_queue_s=0.01)
    await hold(admission, 4, 0.05)
    holders, tasks = await start(admission, [4, 1, 1])
    assert admission.queued == 2, "half of what is in flight may wait"
    with pytest.raises(Unavailable, match="full"):
        admission.check("", 1)
    await finish(holders, tasks)


async def test_the_queue_of_one_caller_does_not_keep_another_one_out() -> None:
    admission = an_admission(4, 1000, max_queue_s=0.01)
    await hold(admission, 4, 0.05)
    holders, tasks = await start(admission, [4, 4])
    with pytest.raises(Unavailable, match="full"):
        admission.check("", 1)
    admission.check("another", 1)
    with pytest.raises(Unavailable, match="full"):
        admission.check("another", 4)  # that much of the first one's would be served before
    await finish(holders, tasks)


async def test_a_large_request_is_not_refused_where_a_small_one_may_wait() -> None:
    admission = an_admission(4, 1000, max_queue_s=0.01)
    await hold(admission, 4, 0.05)
    holders, tasks = await start(admission, [4, 1])
    admission.check("", 4)
    admission.check("another", 4)
    await finish(holders, tasks)


async def test_nothing_is_learned_from_what_failed_at_once() -> None:
    admission = an_admission(4, 1000, max_queue_s=0.01)
    for _ in range(100):
        with pytest.raises(ZeroDivisionError):
            async with admission.permit("", 4, never()):
                raise ZeroDivisionError
    await hold(admission, 4, 0.05)
    holders, tasks = await start(admission, [4, 2])
    with pytest.raises(Unavailable):
        admission.check("", 1)
    await finish(holders, tasks)


async def test_work_that_goes_fast_may_queue_long() -> None:
    admission = an_admission(4, 1000, max_queue_s=1000.0)
    await hold(admission, 4, 0.001)
    holders, tasks = await start(admission, [4] * 100)
    assert admission.queued == 4 * 99
    await finish(holders, tasks)


actions = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "stop", "cancel", "tick"]), st.integers(0, 63)), max_size=60
)


@given(actions)
def test_nothing_leaks_and_each_callers_order_is_kept(script: list[tuple[str, int]]) -> None:
    asyncio.run(follow(script))


async def follow(script: list[tuple[str, int]]) -> None:
    """Random arrivals, departures, deadlines and cancellations; then everyone leaves."""
    admission = an_admission(IN_FLIGHT, QUEUED)
    order: list[Holder] = []
    holders: list[Holder] = []
    tasks: list[asyncio.Task[None]] = []
    for action, number in script:
        if action == "enter":
            holders.append(Holder(admission, 1 + number % IN_FLIGHT, order, caller="abc"[number % 3]))
            await settle()  # whoever has been admitted runs, so that `order` is the order of admission
            tasks.append(asyncio.create_task(holders[-1].run()))
            await asyncio.sleep(0)
        elif action == "tick":
            await asyncio.sleep(0)
        elif holders and action == "leave":
            holders[number % len(holders)].leave.set()
        elif holders and action == "stop":
            stop_now(holders[number % len(holders)].stop)
        elif holders and action == "cancel":
            tasks[number % len(holders)].cancel()
        assert 0 <= admission.free <= IN_FLIGHT
        assert 0 <= admission.queued <= QUEUED
        held = sum(
            holder.n for holder, task in zip(holders, tasks, strict=False) if holder in order and not task.done()
        )
        assert held <= IN_FLIGHT, "more are in flight than may be"
    await settle()
    for holder in holders:
        holder.leave.set()
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert all(
        result is None or isinstance(result, DeadlinePassed | Unavailable | asyncio.CancelledError) for result in ended
    )
    assert (admission.free, admission.queued) == (IN_FLIGHT, 0)
    for caller in "abc":
        admitted = [holder for holder in order if holder.caller == caller]
        assert admitted == [one for one in holders if one in admitted], "a caller's own order was not kept"
    async with admission.permit("", IN_FLIGHT, never()):
        pass
