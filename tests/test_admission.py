"""Permits: first come, first served, bounded, and none lost whatever is cancelled when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.best_of_n import Stop
from bon_server.errors import DeadlinePassed, Unavailable
from bon_server.serving.admission import Admission

IN_FLIGHT, QUEUED = 8, 12


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

    async def run(self) -> None:
        """Notes its turn and waits to be told to leave."""
        async with self.admission.permit(self.n, self.stop):
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


async def test_permits_are_bounded_and_come_back() -> None:
    admission = Admission(8, 8, 500)
    holders, tasks = await start(admission, [5, 3])
    assert (admission.free, admission.queued) == (0, 0)
    for holder in holders:
        holder.leave.set()
    await asyncio.gather(*tasks)
    assert admission.free == 8


async def test_small_ones_do_not_overtake_large_ones() -> None:
    admission = Admission(4, 100, 500)
    holders, tasks = await start(admission, [3, 4, 1])
    assert admission.free == 1, "the last one fits, but it is not its turn"
    assert holders[0].order == [holders[0]]
    assert admission.queued == 5
    for holder in holders:
        holder.leave.set()
    await asyncio.gather(*tasks)
    assert holders[0].order == holders


async def test_a_full_queue_refuses_at_once_with_a_pushback() -> None:
    admission = Admission(4, 4, 700)
    holders, tasks = await start(admission, [4, 4])
    with pytest.raises(Unavailable) as refused:
        async with admission.permit(1, never()):
            pass
    assert refused.value.retry_after_ms == 700
    for holder in holders:
        holder.leave.set()
    await asyncio.gather(*tasks)
    async with admission.permit(4, never()):
        assert admission.free == 0


async def test_a_stopped_waiter_raises_its_reason_and_lets_the_next_one_in() -> None:
    admission = Admission(4, 100, 500)
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
    admission = Admission(4, 100, 500)
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
    admission = Admission(4, 100, 500)
    with pytest.raises(ZeroDivisionError):
        async with admission.permit(4, never()):
            raise ZeroDivisionError
    assert admission.free == 4


actions = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "stop", "cancel", "tick"]), st.integers(0, 63)), max_size=60
)


@given(actions)
def test_nothing_leaks_and_nobody_overtakes(script: list[tuple[str, int]]) -> None:
    asyncio.run(follow(script))


async def follow(script: list[tuple[str, int]]) -> None:
    """Random arrivals, departures, deadlines and cancellations; then everyone leaves."""
    admission = Admission(IN_FLIGHT, QUEUED, 500)
    order: list[Holder] = []
    holders: list[Holder] = []
    tasks: list[asyncio.Task[None]] = []
    for action, number in script:
        if action == "enter":
            holders.append(Holder(admission, 1 + number % IN_FLIGHT, order))
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
    await settle()
    for holder in holders:
        holder.leave.set()
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert all(
        result is None or isinstance(result, DeadlinePassed | Unavailable | asyncio.CancelledError) for result in ended
    )
    assert (admission.free, admission.queued) == (IN_FLIGHT, 0)
    assert order == [holder for holder in holders if holder in order], "permits were not given in the order of arrival"
    async with admission.permit(IN_FLIGHT, never()):
        pass
