"""What has been imported, line by line, so that importing it again adds nothing, also once its records are sealed.

The table `imported(key, digest)` of the spool has a row for each line: `key` is the line's identity, `digest` the
SHA-256 of its bytes. Both are written in the transaction of the record that the line went into.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apsw

from bon_server.log.record import Record
from bon_server.log.spool.database import SpoolRow, row_of
from bon_server.log.spool.spool import Spool
from bon_server.log.spool.writer import INSERT_RECORD


class ImportedLine(NamedTuple):
    """One line of an import."""

    key: bytes
    digest: bytes


def known(spool: Spool, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Key → digest of those lines that are in the log. Raises as `Spool.transaction` does."""

    def look_up(database: apsw.Connection) -> dict[bytes, bytes]:
        found = ((key, database.execute("SELECT digest FROM imported WHERE key = ?", (key,)).get) for key in keys)
        return {key: digest for key, digest in found if digest is not None}

    return spool.transaction(look_up)


def append(spool: Spool, records: Sequence[tuple[Record, Sequence[ImportedLine]]]) -> list[int | None]:
    """Commits records with the lines they were made of; returns ordinals, None where the request id is taken.

    Raises as `Spool.append` does.
    """
    spool.check()
    rows = [(row_of(record), lines) for record, lines in records]

    def insert(database: apsw.Connection) -> list[int | None]:
        return [_insert(database, row, lines) for row, lines in rows]

    return spool.transaction(insert)


def _insert(database: apsw.Connection, row: SpoolRow, lines: Sequence[ImportedLine]) -> int | None:
    ordinal: int | None = database.execute(INSERT_RECORD, row).get
    if ordinal is not None:
        database.executemany("INSERT INTO imported VALUES (?, ?)", lines)
    return ordinal
