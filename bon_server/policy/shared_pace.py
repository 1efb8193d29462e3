"""A pace that running samples share equally, as those of one engine do: the more of them, the slower each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count


class SharedPace:
    """So many tokens a second for all together. Exact to the event loop's timers, without a step per token."""

    def __init__(self, tokens_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens_per_s = tokens_per_s
        self._clock = clock
        self._each = 0.0
        """Tokens that a sample would have by now which had run since the beginning."""
        self._told = clock()
        self._running: dict[int, tuple[float, asyncio.Event]] = {}
        """Number → value of `_each` at which the sample is complete, and whom to tell."""
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    async def produce(self, tokens: int, aborted: asyncio.Event) -> int:
        """Returns as many once they are sampled, or how many there were when `aborted` was set."""
        self._advance()
        number, began, ended = next(self._numbers), self._each, asyncio.Event()
        self._running[number] = (began + tokens, ended)
        self._schedule()
        waits = [asyncio.create_task(ended.wait()), asyncio.create_task(aborted.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._advance()
            self._running.pop(number, None)
            self._schedule()
        return tokens if ended.is_set() else min(tokens - 1, int(self._each - began))

    def _advance(self) -> None:
        """Brings `_each` up to now."""
        now = self._clock()
        if self._running:
            self._each += (now - self._told) * self._tokens_per_s / len(self._running)
        self._told = now

    def _schedule(self) -> None:
        """Sets the timer to when the next sample is complete."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            missing = min(complete for complete, _ in self._running.values()) - self._each
            seconds = max(0.0, missing) * len(self._running) / self._tokens_per_s
            self._timer = asyncio.get_running_loop().call_later(seconds, self._complete)

    def _complete(self) -> None:
        self._timer = None
        self._advance()
        done = [number for number, (complete, _) in self._running.items() if complete <= self._each + 1e-6]
        for number in done:
            self._running.pop(number)[1].set()
        self._schedule()
