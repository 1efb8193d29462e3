"""What recent requests tell about deadlines: how long before one to stop, and which cannot be met at all.

Only the last minute counts. What was learned in a bad minute would otherwise refuse the requests that could show that
it is over: once nothing has been answered for so long, the next one is tried as if nothing were known.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable

from bon_server.core.best_of_n import STOP_GRACE_S, UNWIND_S

FORGET_S = 60.0
REMEMBER = 256
"""Requests remembered at most."""
STOPPING_S = STOP_GRACE_S + UNWIND_S
TAIL_QUANTILE = 0.99
PER_TAIL = 2.0
FIRST_QUANTILE = 0.05
SURE_SHARE = 0.97 / 1.01
"""Of the time that a call announces. Clients made of the C core of gRPC (Python, C++, Ruby and others) round theirs up
to three digits and, rather than send a new number, repeat one up to 3 % above it (grpc#28346), but leave on time."""

Clock = Callable[[], float]


def surely_left_s(announced_s: float) -> float:
    """Seconds for which the caller certainly waits, of those that its call says are left."""
    return announced_s * SURE_SHARE


class Deadlines:
    """Learns from requests that were answered. Pure but for its clock, which tells seconds."""

    def __init__(self, margin_ms: int, clock: Clock = time.monotonic) -> None:
        """margin_ms: the least that is kept free before a deadline."""
        self._least_s = margin_ms / 1e3
        self._tails_s = _Recent(clock)
        self._firsts = _Recent(clock)
        self._firsts_per_token = _Recent(clock)

    @property
    def margin_s(self) -> float:
        """How long before a deadline the best so far has to be taken.

        The longest that stopping may take, then twice what choosing and committing took 99 % of requests: what delays
        those on a busy machine delays as well the question on its way here and the answer on its way back, which the
        server does not see.
        """
        return max(self._least_s, STOPPING_S + PER_TAIL * self._tails_s.quantile(TAIL_QUANTILE))

    def answered(self, seconds: float, stopped: bool) -> None:
        """What choosing and committing took; of a `stopped` one from the moment at which it should have stopped."""
        self._tails_s.add(max(0.0, seconds - STOPPING_S) if stopped else seconds)

    def first_scored(self, seconds: float, tokens: int) -> None:
        """The first scored candidate of a request: seconds from its permit, sampled tokens."""
        self._firsts.add(seconds)
        self._firsts_per_token.add(seconds / max(1, tokens))

    def hopeless(self, seconds: float, max_tokens: int) -> bool:
        """Whether hardly any request had a scored candidate after so long, nor would have had one so short."""
        shortest_s = max_tokens * self._firsts_per_token.quantile(FIRST_QUANTILE)
        return seconds < min(shortest_s, self._firsts.quantile(FIRST_QUANTILE))


class _Recent:
    """The latest values, none older than `FORGET_S`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._arrived: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self._arrived) == REMEMBER:
            self._forget()
        self._arrived.append((self._clock(), value))
        insort(self._sorted, value)

    def quantile(self, share: float) -> float:
        """The smallest value that at least `share` of the values do not exceed; 0 of none."""
        too_old = self._clock() - FORGET_S
        while self._arrived and self._arrived[0][0] < too_old:
            self._forget()
        return self._sorted[math.ceil(share * len(self._sorted)) - 1] if self._sorted else 0.0

    def _forget(self) -> None:
        _, value = self._arrived.popleft()
        del self._sorted[bisect_left(self._sorted, value)]
