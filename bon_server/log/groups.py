"""Records on their way to the writer thread, a group at a time, and the answers on their way back.

Whatever is queued when the writer is free becomes one group, up to a size; with durability `group` it first lingers.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bon_server.errors import RequestError, RequestIdReused
from bon_server.log.database import Row


@dataclass(frozen=True, slots=True)
class Group:
    """Records that were acknowledged together."""

    records: int
    seconds: tuple[float, ...]
    """(records,) from the call of `commit` to the acknowledgement."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record that is not acknowledged yet."""

    row: Row
    future: asyncio.Future[int]
    """Of the event loop that waits: the ordinal."""
    since_s: float
    """Monotonic."""


class GroupQueue:
    """From event loops to one writer thread. linger_s: how long the first of a group waits for others."""

    def __init__(self, linger_s: float, group_records: int) -> None:
        self._linger_s = linger_s
        self._group_records = group_records
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._ended = False

    def put(self, waiting: Waiting) -> None:
        """Never blocks."""
        self._queue.put(waiting)

    def end(self) -> None:
        """Nothing more will be put."""
        self._queue.put(None)

    def next(self) -> list[Waiting]:
        """The next group; blocks until there is one. Empty: the end. For the writer thread."""
        first = None if self._ended else self._queue.get()
        if first is None:
            return []
        group = [first]
        until = time.monotonic() + self._linger_s
        while len(group) < self._group_records:
            wait_s = until - time.monotonic()
            try:
                waiting = self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._ended = True
                break
            group.append(waiting)
        return group


def size_bytes(rows: Sequence[Row]) -> int:
    """Of the records, encoded."""
    return sum(len(row.record) for row in rows)


def answer(group: Sequence[Waiting], outcomes: Sequence[int | RequestError | None]) -> None:
    """Wakes each event loop once with what became of its records. None: that attempt was there already."""
    answers: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int | RequestError]]] = {}
    for waiting, outcome in zip(group, outcomes, strict=True):
        if outcome is None:
            outcome = RequestIdReused("this attempt of the request is in the log already")
        answers.setdefault(waiting.future.get_loop(), []).append((waiting.future, outcome))
    for loop, settled in answers.items():
        with contextlib.suppress(RuntimeError):  # that loop has ended: nobody waits any more
            loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: Sequence[tuple[asyncio.Future[int], int | RequestError]]) -> None:
    for future, outcome in settled:
        if future.done():
            continue
        if isinstance(outcome, RequestError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
