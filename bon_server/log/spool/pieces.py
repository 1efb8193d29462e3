"""Changes of as many rows as a log may have, in transactions of a few each.

Commits wait for each other's transaction: one that deletes a million rows takes seconds, in which nothing is
acknowledged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import apsw

from bon_server.log import catalog
from bon_server.log.spool.spool import Spool

PIECE_ROWS = 256
"""Most rows that a transaction changes."""
LET_COMMIT_S = 0.005
"""Pause after each transaction: a lock that is taken again at once is never had by who waits for it."""
Row = TypeVar("Row")


def pieces(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """All rows in order, `PIECE_ROWS` at a time."""
    left = iter(rows)
    while some := list(islice(left, PIECE_ROWS)):
        yield some


def change_in_pieces(
    spool: Spool, pieces: Iterable[Sequence[Row]], change: Callable[[apsw.Connection, Sequence[Row]], None]
) -> None:
    """Runs `change` on each piece in a transaction of its own, and asks for the next piece after that.

    Raises the `RequestError`s of `Spool.transaction`.
    """
    for some in pieces:
        spool.transaction(partial(_change, change, some))
        time.sleep(LET_COMMIT_S)


def _change(
    change: Callable[[apsw.Connection, Sequence[Row]], None], rows: Sequence[Row], database: apsw.Connection
) -> None:
    change(database, rows)


def forget_overdue(spool: Spool) -> None:
    """Drops the ids, of requests and of feedback, whose time is over by the clock that is believed.

    Raises the `RequestError`s of `Spool.transaction` and `Spool.reading`.
    """
    now_us = spool.clock.believed_us()
    with spool.reading() as reading:
        if spool.clock.doubt_s and catalog.overdue(reading, spool.clock.latest_us(), 1):
            spool.clock.tell(logging.WARNING)  # a table that grows is no harm
        change_in_pieces(spool, _overdue(reading, now_us), partial(catalog.forget, now_us=now_us))
        change_in_pieces(spool, _overdue_feedback(reading, now_us), partial(catalog.forget_feedback, now_us=now_us))


def _overdue(reading: apsw.Connection, now_us: int) -> Iterator[list[tuple[Any, ...]]]:
    """Looks anew for each piece: the one before has gone by then."""
    while some := catalog.overdue(reading, now_us, PIECE_ROWS):
        yield some


def _overdue_feedback(reading: apsw.Connection, now_us: int) -> Iterator[list[tuple[Any, ...]]]:
    after: tuple[Any, ...] = ("", "")
    while some := catalog.overdue_feedback(reading, now_us, PIECE_ROWS, after):
        yield some
        after = some[-1]
