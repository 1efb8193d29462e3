"""The spool's file, SQLite: the committed records that are in no segment yet, and small tables beside them.

    records(ordinal, principal, request_id, attempt, kind, outcome, created_at_us, sha256, record)
    imported(key, digest)                                                   see offline/importing/imported.py
    feedback(ordinal, principal, feedback_id, request_id, sha256, feedback)  see log/feedback.py
    writer, segments, sealing, sealed: what is known of sealed records      see log/catalog.py
    feedback_…, sealed_feedback: what is known of sealed feedback           see log/catalog.py
    rewriting, expired: what happened to sealed files since                 see log/catalog.py

`record` is the MessagePack of one `Record` as `log.record.encode` wrote it, without its ordinal; `sha256` is its
digest, because SQLite notices damage to its own pages but not to their content. The columns before them are copies of
fields, for idempotency and filters. `ordinal` is the commit order and is never used again, also after its row is gone.

WAL with synchronous=FULL: a COMMIT has returned when fsync of the WAL has. Files are for their owner only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import apsw
import msgspec

from bon_server.core.errors import BonError, LogError, StartupError
from bon_server.log.catalog import CATALOG, CHANGES, FEEDBACK_CATALOG, new_writer_id
from bon_server.log.record import Record, encode

Fields = TypeVar("Fields")
TRANSIENT = (BonError, OSError, apsw.Error, MemoryError)
"""What sealing, publishing and removing meet on a disk, at a store, or for want of memory: to be tried again later."""
SPOOL_NAME = "spool.sqlite"
APPLICATION_ID = 0x426F4E53
"""`BoNS`, in SQLite's file header: tells a spool from another SQLite file."""
LAYOUT_VERSION = 2
"""1: records only. 2: with the other tables; made of 1 by adding them."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_TIMEOUT_MS = 5_000
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS records (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    principal TEXT NOT NULL,
    request_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    kind TEXT NOT NULL,
    outcome TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    record BLOB NOT NULL,
    UNIQUE (principal, request_id, attempt)
) STRICT;
{CATALOG}
CREATE TABLE IF NOT EXISTS imported (
    key BLOB PRIMARY KEY,
    digest BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feedback (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    principal TEXT NOT NULL,
    feedback_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    feedback BLOB NOT NULL,
    UNIQUE (principal, feedback_id)
) STRICT;
CREATE INDEX IF NOT EXISTS feedback_by_request ON feedback (principal, request_id);
{FEEDBACK_CATALOG}
{CHANGES}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {LAYOUT_VERSION};
COMMIT;
"""


class SpoolRow(NamedTuple):
    """What is inserted for one record; the ordinal comes from the database."""

    principal: str
    request_id: str
    attempt: int
    kind: str
    outcome: str
    created_at_us: int
    """Microseconds since 1970-01-01 UTC."""
    sha256: bytes
    record: bytes


class StoredRow(NamedTuple):
    """What is read back of one record."""

    ordinal: int
    sha256: bytes
    record: bytes


def row_of(record: Record) -> SpoolRow:
    """The row of a record. Raises ValueError for what must not reach the log, see `encode`."""
    blob = encode(record)
    digest = hashlib.sha256(blob).digest()
    created_at_us = (record.created_at - _EPOCH) // timedelta(microseconds=1)
    return SpoolRow(
        record.principal, record.request_id, record.attempt, record.kind, record.outcome, created_at_us, digest, blob
    )


def check_sqlite(version: str = apsw.sqlite_lib_version()) -> None:
    """Raises `StartupError` for SQLite 3.7.0 to 3.51.2, which can corrupt a WAL database when the WAL is reset."""
    if tuple(int(part) for part in version.split(".")) < (3, 51, 3):
        raise StartupError(f"SQLite {version} has the WAL-reset bug; the log needs 3.51.3 or later (apsw>=3.51.3)")


def open_for_writing(directory: Path) -> apsw.Connection:
    """The writer's connection; makes the file when there is none. Raises `LogError` for what is not a spool."""
    path = directory / SPOOL_NAME
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise LogError(f"{path} cannot be written: {error.strerror}") from error
    try:
        return _prepare(path)
    except apsw.Error as error:
        raise LogError(f"{path} cannot be opened: {error}") from error


def _prepare(path: Path) -> apsw.Connection:
    database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    database.set_busy_timeout(_BUSY_TIMEOUT_MS)
    if database.pragma("page_count"):
        check_layout(database, path)
    if database.pragma("journal_mode", "wal") != "wal":
        raise LogError(f"{path} cannot be switched to WAL; is the folder on a network file system?")
    database.pragma("synchronous", "FULL")
    database.pragma("fullfsync", True)
    # Checkpoints are the writer's own: an fsync error in an automatic one would be swallowed.
    database.wal_autocheckpoint(0)
    if database.pragma("user_version") < LAYOUT_VERSION:
        database.execute(_SCHEMA, (new_writer_id(),))
    return database


def open_for_reading(path: Path) -> apsw.Connection:
    """A read-only connection, also while another process writes. Raises `LogError` for what is not a spool."""
    if not path.is_file():
        raise LogError(f"{path.parent} holds no log: {path.name} is missing")
    try:
        database = _connect_to_read(path)
        database.set_busy_timeout(_BUSY_TIMEOUT_MS)
        check_layout(database, path)
    except apsw.Error as error:
        raise LogError(f"{path} cannot be read: {error}") from error
    return database


def _connect_to_read(path: Path) -> apsw.Connection:
    database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        database.pragma("user_version")
    except (apsw.CantOpenError, apsw.ReadOnlyError):
        # A folder that cannot be written to has no room for the WAL's index; without a WAL nothing needs one.
        if Path(f"{path}-wal").exists():
            raise
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        return apsw.Connection(f"{path.absolute().as_uri()}?immutable=1", flags=flags)
    return database


def check_layout(database: apsw.Connection, path: Path) -> None:
    """Raises `LogError` unless this is a spool whose layout this version knows."""
    application, layout = database.pragma("application_id"), database.pragma("user_version")
    if layout == 0 and not database.execute("SELECT count(*) FROM sqlite_schema").get:
        return  # its writer was killed while making it
    if application != APPLICATION_ID:
        raise LogError(f"{path} is another program's database, not a spool")
    if layout > LAYOUT_VERSION:
        raise LogError(f"{path} has layout {layout}; this version knows up to {LAYOUT_VERSION}")


def unpack(row: StoredRow, decode: Callable[[bytes], Record], path: Path) -> Record:
    """The record of a row, with its ordinal. Raises `LogError`, naming file and row, when the row is damaged."""
    return replace(unpack_fields(row, decode, path), ordinal=row.ordinal)


def unpack_fields(row: StoredRow, decode: Callable[[bytes], Fields], path: Path) -> Fields:
    """As `unpack`, for a type with some of a record's fields."""
    if hashlib.sha256(row.record).digest() != row.sha256:
        raise LogError(f"{path}: row {row.ordinal} is damaged: its content does not match its sha256")
    try:
        return decode(row.record)
    except msgspec.MsgspecError as error:
        raise LogError(f"{path}: row {row.ordinal} is not a record ({type(error).__name__})") from error
