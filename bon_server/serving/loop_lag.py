"""How late the event loop is: what every call waits for when something blocks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EVERY_S = 0.25


class LoopLag:
    """Asks to be called back, again and again, from its construction to `close`. No task: it holds up nothing."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        """observe: told each time by how many seconds it was too late."""
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._ask()

    def close(self) -> None:
        """Asks no more."""
        self._timer.cancel()

    def _ask(self) -> None:
        self._due_s = self._loop.time() + EVERY_S
        self._timer = self._loop.call_at(self._due_s, self._called)

    def _called(self) -> None:
        late_s = self._loop.time() - self._due_s
        self._ask()  # whatever comes of the next line
        self._observe(max(0.0, late_s))
