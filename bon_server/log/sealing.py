"""Sealing: committed records leave the spool for segments.

    plan        the next ordinals, up to `seal_bytes` of records, are noted in the register
    write       one file for each date: temporary name, fsync, rename, fsync of the folder; then read back
    remember    request ids, so that retries still find their answers
    complete    one transaction registers the files and drops the rows

Feedback follows in the same way (`feedback_sealing.py`).

Commits go on meanwhile and wait for the short transactions only. Whatever fails before the last of them, a full disk
say, leaves the spool as it was; whatever was written by then is written again, the same, by the next sealing. Rows that
are damaged stay in the spool, where readers and `bon log verify` report them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa

from bon_server.errors import LogError
from bon_server.log import register
from bon_server.log.columns import to_batch
from bon_server.log.database import SPOOL_NAME, StoredRow, open_for_reading, unpack
from bon_server.log.feedback_sealing import feedback_waiting, seal_feedback
from bon_server.log.record import Record, decode
from bon_server.log.register import RECORDS, Sealed
from bon_server.log.sealing_steps import last_ordinal, plan_next, registered, waiting_bytes
from bon_server.log.segments import SegmentsWriter
from bon_server.log.spool import Spool
from bon_server.types import Kind

_PAGE_ROWS = 16
"""Few, because making Arrow data of them keeps other threads of the process from running."""
_PAGE = (
    "SELECT ordinal, sha256, record FROM records WHERE ordinal > ? AND ordinal <= ?"
    f" ORDER BY ordinal LIMIT {_PAGE_ROWS}"
)
_REMEMBER_ROWS = 512


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


def seal(spool: Spool, seal_bytes: int, replay_window_s: float) -> SealResult:
    """Seals what is in the spool now; blocks. One sealing at a time.

    seal_bytes: of records in one sealing. replay_window_s: how long sealed records answer retries; imported ones always
    do, so that a file can be imported twice.

    Raises `LogError` and OSError when files cannot be written, and the `RequestError`s of `Spool.transaction`; then
    what was not completed is still in the spool.
    """
    result = SealResult()
    with closing(open_for_reading(spool.directory / SPOOL_NAME)) as reading:
        writer = register.writer_id(reading) or ""
        until = last_ordinal(reading, RECORDS)
        while (first_last := plan_next(spool, reading, until, seal_bytes, RECORDS)) is not None:
            _seal_range(spool, reading, writer, first_last, replay_window_s, result)
        now_us = time.time_ns() // 1_000
        spool.transaction(lambda database: register.forget(database, now_us))
    feedback = seal_feedback(spool, seal_bytes, replay_window_s)
    result.feedback = feedback.rows
    result.files += feedback.files
    result.left += feedback.left
    return result


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
    result: SealResult,
) -> None:
    until_us = time.time_ns() // 1_000 + round(replay_window_s * 1e6)
    left: list[int] = []
    remembered: list[Sealed] = []
    with SegmentsWriter(spool.directory, writer, *first_last) as files:
        for records in _pages(reading, spool.directory / SPOOL_NAME, first_last, left):
            for date, fitting, batch in _by_date(records, left):
                files.add(date, batch)
                remembered += [_sealed(record, until_us) for record in fitting]
    made = [registered(spool.directory, file, rows, first_last, until_us) for file, rows in files.rows().items()]
    _remember(spool, [one for one in remembered if replay_window_s > 0 or one.keep_until_us is None])
    spool.transaction(lambda database: register.complete(database, made, left))
    result.records += sum(files.rows().values())
    result.files += files.rows()
    result.left += len(left)


def _pages(
    reading: apsw.Connection, path: Path, first_last: tuple[int, int], left: list[int]
) -> Iterator[list[Record]]:
    """The records of a range, page by page in short transactions; ordinals of damaged rows are added to `left`."""
    after, last = first_last[0] - 1, first_last[1]
    while rows := _rows(reading, after, last):
        records = []
        for row in rows:
            try:
                records.append(unpack(row, decode, path))
            except LogError:
                left.append(row.ordinal)
        yield records
        after = rows[-1].ordinal


def _rows(reading: apsw.Connection, after: int, last: int) -> list[StoredRow]:
    rows: list[Any] = reading.execute(_PAGE, (after, last)).fetchall()
    return [StoredRow(*row) for row in rows]


def _by_date(records: Sequence[Record], left: list[int]) -> Iterator[tuple[str, list[Record], pa.RecordBatch]]:
    """Records by the UTC date of their beginning, also as rows; ordinals of those that do not fit them go to `left`."""
    dates: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        dates[record.created_at.astimezone(UTC).date().isoformat()].append(record)
    for date, some in dates.items():
        try:
            yield date, some, to_batch(some)
        except ValueError:
            fitting = [record for record in some if _fits(record)]
            left += [record.ordinal or 0 for record in some if record not in fitting]
            if fitting:
                yield date, fitting, to_batch(fitting)


def _fits(record: Record) -> bool:
    try:
        to_batch([record])
    except ValueError:
        return False
    return True


def _sealed(record: Record, until_us: int) -> Sealed:
    return Sealed(
        record.principal,
        record.request_id,
        record.attempt,
        record.outcome,
        record.request_digest,
        record.content_logged,
        record.ordinal or 0,
        None if record.kind is Kind.IMPORT else until_us,
    )


def _remember(spool: Spool, records: Sequence[Sealed]) -> None:
    for start in range(0, len(records), _REMEMBER_ROWS):
        some = records[start : start + _REMEMBER_ROWS]
        spool.transaction(partial(register.remember, records=some))
