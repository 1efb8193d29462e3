"""Sealing: committed records leave the spool for segments.

    plan        the next ordinals, up to `seal_bytes` of records, are noted in the register
    write       one file for each date: temporary name, fsync, its name if that is free, fsync of the folder; then read
                back. A file that has the name and the same rows is what a crash left; any other is left alone, and the
                log is closed
    remember    request ids, so that retries still find their answers
    complete    one transaction registers the files and drops the rows

Feedback follows in the same way (`feedback_sealing.py`).

Commits go on meanwhile and wait for the short transactions only. Whatever fails before the last of them, a full disk
say, leaves the spool as it was; whatever was written by then is written again, the same, by the next sealing. Rows that
are damaged stay in the spool, where readers and `bon log verify` report them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw

from bon_server.errors import LogError
from bon_server.log import register
from bon_server.log.database import StoredRow
from bon_server.log.feedback_sealing import feedback_waiting, seal_feedback
from bon_server.log.pieces import change_in_pieces, forget_overdue, pieces
from bon_server.log.register import RECORDS, Sealed
from bon_server.log.sealed_page import SealedPage, seal_page
from bon_server.log.sealing_process import sealing_process
from bon_server.log.sealing_steps import last_ordinal, plan_next, read_back, waiting_bytes
from bon_server.log.segments import SegmentsWriter
from bon_server.log.spool import Spool

_PAGE_ROWS = 16
"""Few, because a record may have thousands of token ids in each of many candidates."""
_PAGE = (
    "SELECT ordinal, sha256, record FROM records WHERE ordinal > ? AND ordinal <= ?"
    f" ORDER BY ordinal LIMIT {_PAGE_ROWS}"
)
MakePage = Callable[[Sequence[StoredRow], int], SealedPage]
"""`sealed_page.seal_page`, or something that has it done elsewhere."""


@dataclass(slots=True)
class SealResult:
    """What a sealing did."""

    records: int = 0
    """Sealed."""
    files: list[str] = field(default_factory=list)
    """Made, relative to the log folder."""
    left: int = 0
    """Records of the range, and observations, that could not be sealed; they stay in the spool."""
    feedback: int = 0
    """Observations sealed."""


def seal(spool: Spool, seal_bytes: int, replay_window_s: float, make_page: MakePage = seal_page) -> SealResult:
    """Seals what is in the spool now; blocks. One sealing at a time.

    Commits by other threads of this process are slow meanwhile, see `seal_beside_commits`.

    seal_bytes: of records in one sealing. replay_window_s: how long sealed records answer retries; imported ones always
    do, so that a file can be imported twice.

    Raises `LogError` and OSError when files cannot be written, and the `RequestError`s of `Spool.transaction` and
    `Spool.reading`; then what was not completed is still in the spool.
    """
    result = SealResult()
    with spool.reading() as reading:
        writer = register.writer_id(reading) or ""
        until = last_ordinal(reading, RECORDS)
        while (first_last := plan_next(spool, reading, until, seal_bytes, RECORDS)) is not None:
            _seal_range(spool, reading, writer, first_last, replay_window_s, make_page, result)
    feedback = seal_feedback(spool, seal_bytes, replay_window_s)
    result.feedback = feedback.rows
    result.files += feedback.files
    result.left += feedback.left
    spool.transaction(spool.clock.save)
    forget_overdue(spool)
    return result


def seal_beside_commits(spool: Spool, seal_bytes: int, replay_window_s: float) -> SealResult:
    """As `seal`, in a way that commits by other threads hardly notice: rows are made in a process of its own.

    For its length that costs a start of Python and some 80 MB.
    """
    with sealing_process() as make_page:
        return seal(spool, seal_bytes, replay_window_s, make_page)


def waiting(reading: apsw.Connection) -> tuple[int, int | None]:
    """Bytes of what the next sealings take, feedback included, and when its oldest began (microseconds since 1970)."""
    after = register.sealed_through(reading)
    oldest = "SELECT created_at_us FROM records WHERE ordinal > ? ORDER BY ordinal LIMIT 1"
    feedback_size, feedback_oldest = feedback_waiting(reading)
    times = [time for time in (reading.execute(oldest, (after,)).get, feedback_oldest) if time is not None]
    return waiting_bytes(reading, RECORDS) + feedback_size, min(times, default=None)


def _seal_range(
    spool: Spool,
    reading: apsw.Connection,
    writer: str,
    first_last: tuple[int, int],
    replay_window_s: float,
    make_page: MakePage,
    result: SealResult,
) -> None:
    until_us = spool.clock.latest_us() + round(replay_window_s * 1e6)
    left: list[int] = []
    remembered: list[Sealed] = []
    with SegmentsWriter(spool.directory, writer, *first_last) as files:
        for rows in _pages(reading, first_last):
            page = make_page(rows, until_us)
            _check_whole(rows, page)
            for date, batch in page.batches:
                files.add(date, batch)
            remembered += page.sealed
            left += page.left
    made = read_back(spool.directory, files.rows(), first_last, until_us)
    kept = [one for one in remembered if replay_window_s > 0 or one.keep_until_us is None]
    change_in_pieces(spool, pieces(kept), register.remember)
    spool.transaction(lambda database: register.complete(database, made, left))
    result.records += sum(files.rows().values())
    result.files += files.rows()
    result.left += len(left)


def _pages(reading: apsw.Connection, first_last: tuple[int, int]) -> Iterator[list[StoredRow]]:
    """The rows of a range, in short transactions."""
    after, last = first_last[0] - 1, first_last[1]
    while rows := _rows(reading, after, last):
        yield rows
        after = rows[-1].ordinal


def _rows(reading: apsw.Connection, after: int, last: int) -> list[StoredRow]:
    rows: list[Any] = reading.execute(_PAGE, (after, last)).fetchall()
    return [StoredRow(*row) for row in rows]


def _check_whole(rows: Sequence[StoredRow], page: SealedPage) -> None:
    """The spool drops a range: a row that is not in a file, and not left on purpose, would be lost."""
    made = sorted(ordinal for _, batch in page.batches for ordinal in batch.column("ordinal").to_pylist())
    remembered = sorted(one.ordinal for one in page.sealed)
    if made != remembered or sorted(made + page.left) != [row.ordinal for row in rows]:
        raise LogError(f"rows {rows[0].ordinal} to {rows[-1].ordinal} of the spool did not all become rows of segments")
