"""A permit before any work: candidates in flight are bounded, candidates waiting are bounded, and full means no."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bon_server.best_of_n import Stop
from bon_server.errors import Unavailable


class Admission:
    """Counts candidates, not requests: a request with n = 64 weighs 64. First come, first served."""

    def __init__(self, in_flight: int, queued: int, retry_after_ms: int) -> None:
        self._free = in_flight
        self._room = queued
        self._retry_after_ms = retry_after_ms
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Candidates that could start now."""
        return self._free

    @property
    def queued(self) -> int:
        """Candidates waiting."""
        return sum(n for n, turn in self._waiting if not turn.done())

    @asynccontextmanager
    async def permit(self, n: int, stop: Stop) -> AsyncIterator[None]:
        """Holds room for n candidates.

        Raises `Unavailable` at once when the queue is full, and the exception of `stop` when that comes first.
        """
        if self._waiting or n > self._free:
            await self._wait(n, stop)
        else:
            self._free -= n
        try:
            yield
        finally:
            self._free += n
            self._admit()

    async def _wait(self, n: int, stop: Stop) -> None:
        if n > self._room:
            raise Unavailable("the server is full", self._retry_after_ms)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((n, turn))
        self._room -= n
        try:
            await asyncio.wait((turn, stop), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if turn.done():  # its turn came in the same moment
                self._free += n
            self._leave(turn)
            raise
        finally:
            self._room += n
        if not turn.done():
            self._leave(turn)
            stop.result()

    def _leave(self, turn: asyncio.Future[None]) -> None:
        turn.cancel()
        self._admit()

    def _admit(self) -> None:
        """Wakes those at the head of the queue that fit; the cancelled ones fall out."""
        while self._waiting:
            n, turn = self._waiting[0]
            if not turn.done():
                if n > self._free:
                    return
                self._free -= n
                turn.set_result(None)
            self._waiting.popleft()
