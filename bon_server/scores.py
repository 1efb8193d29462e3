"""The scores of one request, of completions and of prefixes; identical texts share one, so the first of them pays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from bon_server.types import Score


class Scores:
    """Asked for and arrived."""

    def __init__(self, score: Callable[[str], Awaitable[Score]], elapsed_ns: Callable[[], int]) -> None:
        self._score = score
        self._elapsed_ns = elapsed_ns
        self._of: dict[str, asyncio.Future[Score]] = {}
        self.spans_ns: list[tuple[int, int]] = []
        """Start and end of each wait for a score that arrived."""

    async def of(self, text: str) -> Score:
        """Waits for it. Raises what the reward model raises."""
        pending = self._of.get(text)
        if pending is None:
            pending = self._of[text] = asyncio.ensure_future(self._score(text))
        began_ns = self._elapsed_ns()
        if not pending.done():
            await asyncio.wait((pending,))  # cancels nothing when this candidate is: others may wait for it too
        score = pending.result()
        self.spans_ns.append((began_ns, self._elapsed_ns()))
        return score

    def known(self, text: str) -> bool:
        """Whether nobody has to wait for it any more."""
        return text in self._of and self._of[text].done()

    def tokens(self) -> int:
        """What the reward model read for the scores that arrived."""
        return sum(each.result().tokens for each in self._of.values() if succeeded(each))

    def cancel(self) -> list[asyncio.Future[Score]]:
        """Drops those that have not arrived; returns all."""
        for each in self._of.values():
            each.cancel()
        return list(self._of.values())


def succeeded(future: asyncio.Future[Any]) -> bool:
    """Whether it has a result."""
    return future.done() and not future.cancelled() and future.exception() is None
