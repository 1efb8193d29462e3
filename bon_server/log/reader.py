"""The log as a stream, for any process, also while the server writes.

A reader sees a prefix of the log: what was committed when it was opened, in commit order, each record once. It reads a
page of rows at a time in short transactions, so that memory stays bounded and the writer can go on recycling its
write-ahead log, however slow the consumer is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw
import msgspec

from bon_server.errors import LogError
from bon_server.log.database import SPOOL_NAME, Fields, StoredRow, open_for_reading, unpack, unpack_fields
from bon_server.log.record import Record, decode
from bon_server.types import Kind, Outcome

PAGE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Where:
    """Which records to read; None: any."""

    after_ordinal: int = 0
    """Only later ones."""
    request_id: str | None = None
    kind: Kind | None = None
    outcome: Outcome | None = None


class LogReader:
    """One log folder. Raises `LogError` when there is no log, and while reading, with file and row, for damage."""

    def __init__(self, directory: Path) -> None:
        self.spool_file = directory / SPOOL_NAME
        self._spool = open_for_reading(self.spool_file)
        self.last_ordinal: int = self._last_ordinal()
        """Of the newest record that belongs to the prefix read; 0: the log is empty."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files."""
        self._spool.close()

    def records(self, where: Where = Where()) -> Iterator[Record]:
        """Records in ordinal order."""
        return (unpack(row, decode, file) for file, row in self.rows(where))

    def fields(self, some_fields: type[Fields], where: Where = Where()) -> Iterator[tuple[int, Fields]]:
        """Ordinals with only those fields of each record that a dataclass or Struct names; the rest is skipped over."""
        decoder = msgspec.msgpack.Decoder(some_fields)
        for file, row in self.rows(where):
            yield row.ordinal, unpack_fields(row, decoder.decode, file)

    def rows(self, where: Where = Where()) -> Iterator[tuple[Path, StoredRow]]:
        """Stored rows with the file each is in, undecoded and unchecked, in ordinal order."""
        conditions, values = _conditions(where)
        page = f"SELECT ordinal, sha256, record FROM records WHERE {conditions} ORDER BY ordinal LIMIT {PAGE_ROWS}"
        ordinal = where.after_ordinal
        while ordinal < self.last_ordinal:
            rows = [StoredRow(*row) for row in self._query(page, ordinal, self.last_ordinal, *values)]
            if not rows:
                return
            for row in rows:
                yield self.spool_file, row
            ordinal = rows[-1].ordinal

    def _last_ordinal(self) -> int:
        if not self._query("SELECT count(*) FROM sqlite_schema")[0][0]:
            return 0  # its writer was killed while making it
        return self._query("SELECT max(ordinal) FROM records")[0][0] or 0

    def _query(self, statement: str, *values: str | int) -> list[tuple[Any, ...]]:
        try:
            return self._spool.execute(statement, values).fetchall()
        except apsw.Error as error:
            after = f" after row {values[0]}" if values else ""
            raise LogError(f"{self.spool_file} cannot be read{after}: {error}") from error


def _conditions(where: Where) -> tuple[str, list[str]]:
    """SQL after WHERE, whose first two parameters are the ordinals to read between, and the values of the others."""
    wanted = {"request_id": where.request_id, "kind": where.kind, "outcome": where.outcome}
    given = {column: value for column, value in wanted.items() if value is not None}
    return " AND ".join(["ordinal > ?", "ordinal <= ?", *(f"{column} = ?" for column in given)]), list(given.values())
