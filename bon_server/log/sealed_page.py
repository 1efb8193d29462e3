"""A page of the spool as a sealing needs it: rows for segments, by date, and what retries will be asked about.

Nothing here touches a file, so that it may be done in another process (`sealing_process.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from bon_server.errors import LogError
from bon_server.log.columns import to_batch
from bon_server.log.database import SPOOL_NAME, StoredRow, unpack
from bon_server.log.record import Record, decode
from bon_server.log.register import Sealed
from bon_server.types import Kind


class SealedPage(NamedTuple):
    """Of some rows of the spool."""

    batches: list[tuple[str, pa.RecordBatch]]
    """UTC dates, YYYY-MM-DD, each with the records that began on it, in the order of their ordinals."""
    sealed: list[Sealed]
    """One for each record in `batches`."""
    left: list[int]
    """Ordinals of rows that are damaged or do not fit the columns."""


def seal_page(rows: Sequence[StoredRow], keep_until_us: int) -> SealedPage:
    """keep_until_us: how long the records answer retries; imported ones always do."""
    page = SealedPage([], [], [])
    for date, records in _by_date(_unpacked(rows, page.left)).items():
        for fitting, batch in _batches(records, page.left):
            page.batches.append((date, batch))
            page.sealed.extend(_sealed(record, keep_until_us) for record in fitting)
    return page


def _unpacked(rows: Sequence[StoredRow], left: list[int]) -> Iterator[Record]:
    for row in rows:
        try:
            yield unpack(row, decode, Path(SPOOL_NAME))
        except LogError:
            left.append(row.ordinal)


def _by_date(records: Iterator[Record]) -> dict[str, list[Record]]:
    dates: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        dates[record.created_at.astimezone(UTC).date().isoformat()].append(record)
    return dates


def _batches(records: list[Record], left: list[int]) -> Iterator[tuple[list[Record], pa.RecordBatch]]:
    """At most one, of the records that fit the columns."""
    try:
        yield records, to_batch(records)
    except ValueError:
        fitting = [record for record in records if _fits(record)]
        left += [record.ordinal or 0 for record in records if record not in fitting]
        if fitting:
            yield fitting, to_batch(fitting)


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
