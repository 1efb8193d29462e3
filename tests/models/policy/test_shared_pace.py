"""Samples share a pace: all together they are as fast as it says, whenever they come, end or are aborted."""

from __future__ import annotations

import asyncio

from bon_server.models.policy.synthetic import SharedPace


class Clock:
    """Seconds that pass only when told, so that a fast machine and a slow one count the same tokens."""

    now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


async def settle() -> None:
    """Lets everything that can go on go on."""
    for _ in range(8):
        await asyncio.sleep(0)


async def test_two_get_half_each() -> None:
    clock = Clock()
    pace = SharedPace(100.0, clock)
    aborts = [asyncio.Event(), asyncio.Event()]
    samples = [asyncio.create_task(pace.produce(1000, abort)) for abort in aborts]
    await settle()
    clock.now = 1.0
    aborts[0].set()
    assert await samples[0] == 50
    clock.now = 2.0
    aborts[1].set()
    assert await samples[1] == 150, "50 while there were two, 100 alone"


async def test_the_short_one_ends_first_and_all_end_in_time() -> None:
    loop = asyncio.get_running_loop()
    pace = SharedPace(10_000.0)
    began = loop.time()
    ended: list[int] = []

    async def sample(tokens: int) -> None:
        assert await pace.produce(tokens, asyncio.Event()) == tokens
        ended.append(tokens)

    await asyncio.gather(*(sample(tokens) for tokens in (300, 100, 200)))
    assert ended == [100, 200, 300]
    assert loop.time() - began >= 0.06 - 1e-3, "600 tokens at 10,000 a second"


async def test_one_that_is_given_up_leaves_its_share_to_the_others() -> None:
    clock = Clock()
    pace = SharedPace(100.0, clock)
    abort = asyncio.Event()
    given_up = asyncio.create_task(pace.produce(1000, asyncio.Event()))
    other = asyncio.create_task(pace.produce(1000, abort))
    await settle()
    clock.now = 1.0
    given_up.cancel()
    await settle()
    clock.now = 2.0
    abort.set()
    assert await other == 150
