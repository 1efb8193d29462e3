"""Pruning alone: who is compared, with whom, and what has ended meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from bon_server.core.pruning import Pruning
from bon_server.core.types import Score
from tests.fakes import scored


class Comparing:
    """A `Pruning` whose prefixes are their own rewards and whose scores wait until they are let through."""

    def __init__(self, first_wave: int, fraction: float = 0.5) -> None:
        self.asked: list[str] = []
        self.aborted: list[set[int]] = []
        self.let_through = asyncio.Event()
        self.pruning = Pruning(fraction, range(first_wave), self._score, self._abort, lambda failure: None)

    async def settle(self) -> None:
        """Lets the scores through and waits for the comparisons."""
        await asyncio.sleep(0)
        self.let_through.set()
        while self.pruning.tasks:
            await asyncio.wait(set(self.pruning.tasks))

    async def _score(self, prefix: str) -> Score:
        self.asked.append(prefix)
        await self.let_through.wait()
        return scored(float(prefix))

    async def _abort(self, indices: Collection[int]) -> None:
        self.aborted.append(set(indices))


async def test_one_that_ended_before_the_others_came_so_far_is_not_compared() -> None:
    comparing = Comparing(first_wave=3)
    comparing.pruning.passed(0, "0")
    comparing.pruning.ended(0)
    comparing.pruning.passed(1, "1")
    assert not comparing.pruning.tasks, "the third one is waited for"
    comparing.pruning.passed(2, "2")
    await comparing.settle()
    assert comparing.asked == ["1", "2"]
    assert comparing.pruning.pruned == {1}


async def test_one_that_ends_while_it_is_compared_is_not_pruned() -> None:
    comparing = Comparing(first_wave=4)
    for index in range(4):
        comparing.pruning.passed(index, str(index))
    comparing.pruning.ended(0)
    await comparing.settle()
    assert comparing.aborted == [{1}]
    assert comparing.pruning.pruned == {1}
