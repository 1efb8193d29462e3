"""The records of the spool as `bon log verify` reads them: every row, and whether it fits where it is and will be."""

from __future__ import annotations

from collections.abc import Iterator

from bon_server.errors import LogError
from bon_server.log.columns import to_batch
from bon_server.log.database import StoredRow, row_of, unpack
from bon_server.log.reader import LogReader
from bon_server.log.record import Record, decode

_PAGE = "SELECT ordinal, sha256, record, principal, request_id, attempt, kind, outcome FROM records"


def spool_records(reader: LogReader) -> Iterator[tuple[int, Record | LogError, str | None]]:
    """Ordinals with what each row holds, and what does not fit, if anything. Raises `LogError` where reading ends."""
    for stored, copies in _rows(reader):
        try:
            record = unpack(stored, decode, reader.spool_file)
        except LogError as error:
            yield stored.ordinal, error, None
            continue
        yield stored.ordinal, record, _unfit(record, copies)


def _unfit(record: Record, copies: tuple[object, ...]) -> str | None:
    try:
        to_batch([record])
        fits = tuple(row_of(record)[:5]) == copies
    except ValueError as error:
        return str(error)
    return None if fits else "its columns are not those of its record"


def _rows(reader: LogReader) -> Iterator[tuple[StoredRow, tuple[object, ...]]]:
    after = 0
    while after < reader.last_ordinal:
        page = f"{_PAGE} WHERE ordinal > ? AND ordinal <= ? ORDER BY ordinal LIMIT 64"
        rows = reader.database(page, after, reader.last_ordinal)
        for row in rows:
            yield StoredRow(*row[:3]), row[3:]
        after = rows[-1][0] if rows else reader.last_ordinal
