"""A permit before any work: candidates in flight are bounded, those waiting are bounded, and full means no.

What may wait is bounded in time, not only in number, so that overload makes the server refuse and not its queue grow.
By Little's law Q candidates ahead take Q / in_flight times as long as a permit is held, which is learned. A request may
wait if it should start within `max_queue_s` seconds, or within half the time that permits are held if that is longer:
so an admitted one takes at most about half as long again as one that need not wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bon_server.config.settings import LimitsConfig
from bon_server.core.best_of_n import Stop
from bon_server.core.errors import Unavailable
from bon_server.serving.admission.fair_queue import FairQueue, Turn

WAIT_PER_HOLD = 0.5
"""Longest wait, as a share of the time for which permits are held; `limits.max_queue_s` where that is longer."""


class Admission:
    """Counts candidates, not requests: a request with n = 64 weighs 64. Fair between callers, see `FairQueue`."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._free = limits.max_candidates_in_flight
        self._queue = FairQueue()
        self._turns: dict[Turn, asyncio.Future[None]] = {}
        self._held_s = 0.0

    @property
    def free(self) -> int:
        """Candidates that could start now."""
        return self._free

    @property
    def queued(self) -> int:
        """Candidates waiting."""
        return self._queue.candidates

    def check(self, caller: str, n: int) -> None:
        """Whether n more candidates of this caller may start or wait now; raises `Unavailable` when not.

        What counts is what would be served before, so that the queue of one caller does not keep others out.
        """
        n = min(n, self._limits.max_n)  # more is refused for what it is, not for want of room
        if not self._queue and n <= self._free:
            return
        limits = self._limits
        if self.queued + n > limits.max_candidates_queued or self._queue.ahead(caller, n) >= self._room():
            raise Unavailable("the server is full", limits.retry_after_ms)
        if self._queue.of(caller) >= limits.max_queue_share * limits.max_candidates_queued:
            raise Unavailable("this caller has too much waiting", limits.retry_after_ms)

    @asynccontextmanager
    async def permit(self, caller: str, n: int, stop: Stop) -> AsyncIterator[None]:
        """Holds room for n candidates.

        Raises `Unavailable` at once when it may not wait, and the exception of `stop` when that comes first.
        """
        self.check(caller, n)
        if self._queue or n > self._free:
            await self._wait(caller, n, stop)
        else:
            self._free -= n
        began = time.monotonic()
        try:
            yield
            self._learn(n, time.monotonic() - began)
        finally:
            self._release(n)

    async def _wait(self, caller: str, n: int, stop: Stop) -> None:
        turn = self._queue.join(caller, n)
        admitted = self._turns[turn] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((admitted, stop), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if admitted.done():  # its turn came in the same moment
                self._release(n)
            raise
        finally:
            if not admitted.done():
                self._queue.leave(turn)
                del self._turns[turn]
                self._admit()  # a smaller one may fit now
        if not admitted.done():
            stop.result()

    def _room(self) -> float:
        """Candidates that may be ahead of one that waits."""
        if not self._held_s:
            return self._limits.max_candidates_queued
        holds = max(WAIT_PER_HOLD, self._limits.max_queue_s / self._held_s)
        return min(self._limits.max_candidates_queued, math.ceil(holds * self._limits.max_candidates_in_flight))

    def _learn(self, n: int, held_s: float) -> None:
        """A moving mean over about as many candidates as can be in flight; not of requests refused when they asked."""
        weight = n / (n + self._limits.max_candidates_in_flight) if self._held_s else 1.0
        self._held_s += (held_s - self._held_s) * weight

    def _release(self, n: int) -> None:
        self._free += n
        self._admit()

    def _admit(self) -> None:
        """Wakes whoever is next while it fits. Nobody overtakes the next one, or large requests would never fit."""
        while self._queue and (turn := self._queue.next()).n <= self._free:
            self._queue.serve(turn)
            self._free -= turn.n
            self._turns.pop(turn).set_result(None)
