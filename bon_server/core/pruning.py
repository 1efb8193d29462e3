"""Ending candidates early whose prefixes score low: speculative rejection (Sun et al., 2024), with guards.

The first comparison waits until each candidate of the first wave has passed the milestone or has ended, so that an
early one is not judged alone. Those that start later, where the number of candidates adapts, are compared with all
prefixes before them as they pass. At least one goes on; a prefix without a finite score is not compared but kept; what
has ended meanwhile stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from bon_server.core.selection import lowest
from bon_server.core.types import Score


class Pruning:
    """Of one request."""

    def __init__(
        self,
        fraction: float,
        first_wave: Collection[int],
        score: Callable[[str], Awaitable[Score]],
        abort: Callable[[Collection[int]], Awaitable[None]],
        on_failure: Callable[[BaseException | None], None],
    ) -> None:
        """Of all prefixes so far the `fraction` that scores lowest is aborted. on_failure: with what a task raised."""
        self.pruned: set[int] = set()
        """Candidates that were aborted."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Comparisons under way."""
        self._fraction = fraction
        self._score = score
        self._abort = abort
        self._on_failure = on_failure
        self._awaited = set(first_wave)
        self._ended: set[int] = set()
        self._prefixes: dict[int, str] = {}
        self._rewards: list[float | None] = []

    def passed(self, index: int, prefix: str) -> None:
        """A candidate has reached the milestone."""
        self._prefixes[index] = prefix
        self._compare_once_all_are_there(index)

    def ended(self, index: int) -> None:
        """A candidate needs no judgement any more."""
        self._ended.add(index)
        self._prefixes.pop(index, None)
        self._compare_once_all_are_there(index)

    def _compare_once_all_are_there(self, index: int) -> None:
        self._awaited.discard(index)
        if not self._awaited and self._prefixes:
            prefixes, self._prefixes = self._prefixes, {}
            task = asyncio.create_task(self._compare(prefixes))
            self.tasks.add(task)
            task.add_done_callback(self._compared)

    async def _compare(self, prefixes: dict[int, str]) -> None:
        scores = await asyncio.gather(*(self._score(prefix) for prefix in prefixes.values()))
        before = len(self._rewards)
        self._rewards += [score.reward for score in scores]
        low = {position - before for position in lowest(self._rewards, self._fraction)}
        chosen = {index for place, index in enumerate(prefixes) if place in low} - self._ended
        self.pruned |= chosen
        await self._abort(chosen)

    def _compared(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            self._on_failure(task.exception())
