"""The catalog: tables in the spool's file that say which sealed files are in the log, and what happened to them.

Each stream of the log, records and feedback, has tables of its own for the same four facts (`StreamTables`):

    segments, feedback_segments   the sealed files with rows, bytes and sha256, in the order of sealing
    sealing, feedback_sealing     the range of ordinals being written to files just now; a crash leaves it, and the
                                  next sealing writes the same files again, under the same names
    writer, feedback_sealed       how far the stream is sealed; what is left in the spool below that could not be.
                                  `writer` also has the id of who seals here, made once with the file, because a new
                                  file counts ordinals from 1 again
    sealed, sealed_feedback       ids of sealed rows, kept for a while: a retry of a request still finds its answer,
                                  and a repeated call with feedback is compared with the digest of what was said

Two tables are about the files of both:

    rewriting   how a file looks that is about to be replaced by an erasure, or just was. A reader takes either, the
                one in the catalog or this; a crash leaves the note, and the next erasure finishes what it finds
    expired     files that were removed on purpose

A row leaves the spool in the transaction that puts its segment into the catalog, so at any moment it is in the spool or
in a segment of the catalog, never in both and never in none.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apsw

SEGMENT_COLUMNS = """
    file TEXT NOT NULL UNIQUE,
    first_ordinal INTEGER NOT NULL,
    last_ordinal INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    footer_sha256 TEXT NOT NULL,
    replayable_until_us INTEGER NOT NULL"""
"""Of every table that holds a `Segment`."""
CATALOG = f"""
CREATE TABLE IF NOT EXISTS writer (id TEXT NOT NULL, sealed_through INTEGER NOT NULL) STRICT;
INSERT INTO writer SELECT ?, 0 WHERE NOT EXISTS (SELECT 1 FROM writer);
CREATE TABLE IF NOT EXISTS segments (
    number INTEGER PRIMARY KEY,
{SEGMENT_COLUMNS}
) STRICT;
CREATE TABLE IF NOT EXISTS sealing (first_ordinal INTEGER NOT NULL, last_ordinal INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS sealed (
    principal TEXT NOT NULL,
    request_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    content_logged INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    keep_until_us INTEGER,
    PRIMARY KEY (principal, request_id, attempt)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sealed_by_age ON sealed (keep_until_us) WHERE keep_until_us IS NOT NULL;
CREATE TRIGGER IF NOT EXISTS sealed_attempts_are_logged BEFORE INSERT ON records
WHEN EXISTS (
    SELECT 1 FROM sealed
    WHERE principal = NEW.principal AND request_id = NEW.request_id AND attempt = NEW.attempt
)
BEGIN SELECT RAISE(IGNORE); END;
"""
"""SQL that makes the tables; its one parameter is a new writer id."""
FIRST_LAYOUT = 2
"""Of a spool's file that has the catalog."""


class StreamTables(NamedTuple):
    """The tables in which the sealing of one table of the spool is noted."""

    rows: str
    """What is sealed, by `ordinal`."""
    content: str
    """Its column with the encoded row."""
    segments: str
    sealing: str
    through: str
    """The table that says how far it is sealed, in the column of the next."""
    through_column: str


RECORDS = StreamTables("records", "record", "segments", "sealing", "writer", "sealed_through")
FEEDBACK = StreamTables("feedback", "feedback", "feedback_segments", "feedback_sealing", "feedback_sealed", "through")
STREAMS = (RECORDS, FEEDBACK)


def stream_of(file: str) -> StreamTables:
    """The stream that a sealed file is of."""
    return FEEDBACK if file.startswith("feedback/") else RECORDS


class Segment(NamedTuple):
    """One sealed file, as in the catalog."""

    file: str
    """Relative to the log folder."""
    first_ordinal: int
    """Of the sealing: the file's own rows are between the two, and other dates have files of the same range."""
    last_ordinal: int
    rows: int
    bytes: int
    sha256: str
    """Hexadecimal."""
    footer_sha256: str
    """Of the end of the file, see `segments.files.footer_sha256`; hexadecimal."""
    replayable_until_us: int
    """Until then (microseconds since 1970) its records answer retries, so that their ids cannot be used again."""


class Sealed(NamedTuple):
    """What is kept of a sealed record for retries."""

    principal: str
    request_id: str
    attempt: int
    outcome: str
    request_digest: str
    content_logged: bool
    ordinal: int
    keep_until_us: int | None
    """None: for good."""


def new_writer_id() -> str:
    """Names made later sort after earlier ones."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def writer_id(database: apsw.Connection) -> str | None:
    """None: the file was made before there were segments, or its making was interrupted."""
    if database.pragma("user_version") < FIRST_LAYOUT:
        return None
    name: str | None = database.execute("SELECT id FROM writer").get
    return name


def segments(database: apsw.Connection, after: int = 0, stream: StreamTables = RECORDS) -> list[Segment]:
    """The segments of the catalog in the order of sealing; only those whose sealings began after an ordinal."""
    if database.pragma("user_version") < FIRST_LAYOUT:
        return []
    statement = f"SELECT {', '.join(Segment._fields)} FROM {stream.segments} WHERE first_ordinal > ? ORDER BY number"
    return [Segment(*row) for row in database.execute(statement, (after,))]


def sealed_through(database: apsw.Connection, stream: StreamTables = RECORDS) -> int:
    """The last ordinal that was sealed; what is left below it in the spool could not be."""
    return database.execute(f"SELECT {stream.through_column} FROM {stream.through}").get or 0


def planned(database: apsw.Connection, stream: StreamTables = RECORDS) -> tuple[int, int] | None:
    """First and last ordinal of a sealing that is under way, or that a crash interrupted."""
    if database.pragma("user_version") < FIRST_LAYOUT:
        return None
    plan: tuple[int, int] | None = database.execute(
        f"SELECT first_ordinal, last_ordinal FROM {stream.sealing}"
    ).fetchone()
    return plan


def plan(database: apsw.Connection, first_ordinal: int, last_ordinal: int, stream: StreamTables = RECORDS) -> None:
    """Notes what will be sealed next."""
    database.execute(f"INSERT INTO {stream.sealing} VALUES (?, ?)", (first_ordinal, last_ordinal))


def complete(
    database: apsw.Connection, made: Sequence[Segment], left: Sequence[int], stream: StreamTables = RECORDS
) -> None:
    """Enters the segments of the plan and drops its rows from the spool, but for the `left` ordinals."""
    columns, places = ", ".join(Segment._fields), ", ".join("?" for _ in Segment._fields)
    database.executemany(f"INSERT INTO {stream.segments} ({columns}) VALUES ({places})", made)
    database.execute(
        f"DELETE FROM {stream.rows} WHERE ordinal BETWEEN (SELECT first_ordinal FROM {stream.sealing})"
        f" AND (SELECT last_ordinal FROM {stream.sealing}) AND ordinal NOT IN (SELECT value FROM json_each(?))",
        (str(list(left)),),
    )
    last = f"(SELECT last_ordinal FROM {stream.sealing})"
    database.execute(f"UPDATE {stream.through} SET {stream.through_column} = {last}")
    database.execute(f"DELETE FROM {stream.sealing}")


def remember(database: apsw.Connection, records: Iterable[Sealed]) -> None:
    """Keeps request ids; says anew what is kept of them already."""
    places = ", ".join("?" for _ in Sealed._fields)
    database.executemany(f"INSERT OR REPLACE INTO sealed VALUES ({places})", records)


def overdue(database: apsw.Connection, now_us: int, most: int) -> list[tuple[Any, ...]]:
    """Keys of request ids whose time is over, for `forget`; a limited number."""
    keys = "SELECT principal, request_id, attempt FROM sealed WHERE keep_until_us < ? LIMIT ?"
    return database.execute(keys, (now_us, most)).fetchall()


def forget(database: apsw.Connection, keys: Iterable[tuple[Any, ...]], now_us: int | None = None) -> None:
    """Drops request ids; now_us: only those whose time is over then."""
    statement = "DELETE FROM sealed WHERE principal = ? AND request_id = ? AND attempt = ?"
    if now_us is not None:
        statement += f" AND keep_until_us < {now_us:d}"
    database.executemany(statement, keys)


def latest(database: apsw.Connection, principal: str, request_id: str) -> Sealed | None:
    """The latest sealed attempt at a request that is still remembered."""
    statement = f"SELECT {', '.join(Sealed._fields)} FROM sealed WHERE principal = ? AND request_id = ?"
    row = database.execute(f"{statement} ORDER BY attempt DESC LIMIT 1", (principal, request_id)).fetchone()
    return None if row is None else Sealed(*row)


def segments_around(database: apsw.Connection, ordinal: int) -> list[Segment]:
    """The segments one of which holds a sealed ordinal."""
    statement = f"SELECT {', '.join(Segment._fields)} FROM segments WHERE ? BETWEEN first_ordinal AND last_ordinal"
    return [Segment(*row) for row in database.execute(statement, (ordinal,))]


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
    return stream_of(file).segments


def versions(database: apsw.Connection, file: str) -> list[Version] | None:
    """How a file may look now; None: it was removed on purpose."""
    if database.pragma("user_version") < FIRST_LAYOUT:
        return []
    if database.execute("SELECT count(*) FROM expired WHERE file = ?", (file,)).get:
        return None
    columns = ", ".join(Version._fields)
    either = f"SELECT {columns} FROM {_table(file)} WHERE file = ? UNION SELECT {columns} FROM rewriting WHERE file = ?"
    return [Version(*row) for row in database.execute(either, (file, file))]


def is_in_catalog(database: apsw.Connection, file: str) -> bool:
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
    """Enters a file as it was noted."""
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


FEEDBACK_CATALOG = f"""
CREATE TABLE IF NOT EXISTS feedback_segments (
    number INTEGER PRIMARY KEY,
{SEGMENT_COLUMNS}
) STRICT;
CREATE TABLE IF NOT EXISTS feedback_sealing (first_ordinal INTEGER NOT NULL, last_ordinal INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS feedback_sealed (through INTEGER NOT NULL) STRICT;
INSERT INTO feedback_sealed SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM feedback_sealed);
CREATE TABLE IF NOT EXISTS sealed_feedback (
    principal TEXT NOT NULL,
    feedback_id TEXT NOT NULL,
    said BLOB NOT NULL,
    ordinal INTEGER NOT NULL,
    keep_until_us INTEGER NOT NULL,
    PRIMARY KEY (principal, feedback_id)
) STRICT, WITHOUT ROWID;
"""


class SealedFeedback(NamedTuple):
    """What is kept of a sealed observation for repeated calls."""

    principal: str
    feedback_id: str
    said: bytes
    """Digest, see `log.feedback.said`."""
    ordinal: int
    keep_until_us: int


def remember_feedback(database: apsw.Connection, observations: Iterable[SealedFeedback]) -> None:
    """Keeps ids; says anew what is kept of them already."""
    database.executemany("INSERT OR REPLACE INTO sealed_feedback VALUES (?, ?, ?, ?, ?)", observations)


def said_under(database: apsw.Connection, principal: str, feedback_id: str) -> bytes | None:
    """Digest of the sealed observation with this id; None: there is none, or it is not remembered any more."""
    statement = "SELECT said FROM sealed_feedback WHERE principal = ? AND feedback_id = ?"
    digest: bytes | None = database.execute(statement, (principal, feedback_id)).get
    return digest


def overdue_feedback(
    database: apsw.Connection, now_us: int, most: int, after: tuple[Any, ...]
) -> list[tuple[Any, ...]]:
    """Keys of ids whose time is over, for `forget`, in their order; a limited number of those after a key."""
    # No index has their times; one pass in the order of the key looks at each row once.
    keys = (
        "SELECT principal, feedback_id FROM sealed_feedback WHERE (principal, feedback_id) > (?, ?)"
        " AND keep_until_us < ? ORDER BY principal, feedback_id LIMIT ?"
    )
    return database.execute(keys, (*after, now_us, most)).fetchall()


def forget_feedback(database: apsw.Connection, keys: Iterable[tuple[Any, ...]], now_us: int) -> None:
    """Drops ids, of these whose time is over."""
    statement = "DELETE FROM sealed_feedback WHERE principal = ? AND feedback_id = ? AND keep_until_us < ?"
    database.executemany(statement, ((*key, now_us) for key in keys))
