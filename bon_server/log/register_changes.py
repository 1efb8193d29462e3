"""What happened to sealed files since: rewritten for an erasure, or removed by the retention.

rewriting    a file that is about to be replaced, or just was: how it then looks. A reader takes either, the one
             registered or this; a crash leaves the note, and the next erasure finishes what it finds
expired      files that were removed on purpose
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apsw

from bon_server.log.register import FIRST_LAYOUT, SEGMENT_COLUMNS, Segment, ledger_of

CHANGES = f"""
CREATE TABLE IF NOT EXISTS rewriting (
    file TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    footer_sha256 TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS expired (
{SEGMENT_COLUMNS}
) STRICT;
"""


class Version(NamedTuple):
    """How a file looks."""

    rows: int
    bytes: int
    sha256: str
    """Hexadecimal."""
    footer_sha256: str


def _table(file: str) -> str:
    return ledger_of(file).segments


def versions(database: apsw.Connection, file: str) -> list[Version] | None:
    """How a file may look now; None: it was removed on purpose."""
    if database.pragma("user_version") < FIRST_LAYOUT:
        return []
    if database.execute("SELECT count(*) FROM expired WHERE file = ?", (file,)).get:
        return None
    columns = ", ".join(Version._fields)
    either = f"SELECT {columns} FROM {_table(file)} WHERE file = ? UNION SELECT {columns} FROM rewriting WHERE file = ?"
    return [Version(*row) for row in database.execute(either, (file, file))]


def is_registered(database: apsw.Connection, file: str) -> bool:
    """Whether the folder's own writer made it and it is in the log."""
    return bool(database.execute(f"SELECT count(*) FROM {_table(file)} WHERE file = ?", (file,)).get)


def rewritings(database: apsw.Connection) -> dict[str, Version]:
    """Files that are about to be replaced, or just were."""
    if database.pragma("user_version") < FIRST_LAYOUT:
        return {}
    columns = ", ".join(Version._fields)
    return {row[0]: Version(*row[1:]) for row in database.execute(f"SELECT file, {columns} FROM rewriting")}


def will_be(database: apsw.Connection, file: str, version: Version) -> None:
    """Notes how a file looks once it is replaced."""
    database.execute("INSERT OR REPLACE INTO rewriting VALUES (?, ?, ?, ?, ?)", (file, *version))


def was_replaced(database: apsw.Connection, file: str) -> None:
    """Registers a file as it was noted."""
    columns = ", ".join(Version._fields)
    database.execute(
        f"UPDATE {_table(file)} SET ({columns}) = (SELECT {columns} FROM rewriting WHERE file = ?) WHERE file = ?",
        (file, file),
    )
    was_not_replaced(database, file)


def was_not_replaced(database: apsw.Connection, file: str) -> None:
    """Drops the note: the file is as it was."""
    database.execute("DELETE FROM rewriting WHERE file = ?", (file,))


def expire(database: apsw.Connection, files: Sequence[str]) -> None:
    """Takes files out of the log."""
    for file in files:
        _move(database, file, _table(file), "expired")
        was_not_replaced(database, file)


def keep(database: apsw.Connection, files: Sequence[str]) -> None:
    """Takes files back into the log that were taken out and are still there."""
    for file in files:
        _move(database, file, "expired", _table(file))


def _move(database: apsw.Connection, file: str, source: str, target: str) -> None:
    columns = ", ".join(Segment._fields)
    database.execute(f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {source} WHERE file = ?", (file,))
    database.execute(f"DELETE FROM {source} WHERE file = ?", (file,))


def expired(database: apsw.Connection) -> list[str]:
    """Every file that was ever taken out of the log, sorted."""
    if database.pragma("user_version") < FIRST_LAYOUT:
        return []
    return [row[0] for row in database.execute("SELECT file FROM expired ORDER BY file")]
