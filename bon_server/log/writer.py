"""Transactions on the spool, one at a time: what is on disk, what may be tried again, what is final.

A full disk fails the transaction at hand and is tried again with the next. Any other error of SQLite or of fsync is
final: what is on disk is then unknown, so nothing is written any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import apsw

from bon_server.errors import LogError, LogFull, RequestError, Unavailable
from bon_server.log.database import SPOOL_NAME, Row, open_for_writing

Result = TypeVar("Result")
CHECKPOINT_PAGES = 4_000
"""Pages in the write-ahead log (about 16 MB) that are worth moving into the database."""
RETRY_AFTER_MS = 1_000

_INSERT = (
    "INSERT INTO records (principal, request_id, attempt, kind, outcome, created_at_us, sha256, record)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING ordinal"
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start found on disk."""

    records: int
    """Committed records in the spool."""
    last_ordinal: int
    """Of the newest record ever committed; 0: none yet."""
    wal_frames: int
    """Pages that were only in the write-ahead log, left by a writer that did not end by itself; now checkpointed."""
    spool_bytes: int
    """Size of the database and its write-ahead log."""


class Writer:
    """The one writing connection to a spool. Its methods may be called from any thread."""

    def __init__(self, directory: Path, on_failure: Callable[[LogError], None]) -> None:
        self._path = directory / SPOOL_NAME
        self._on_failure = on_failure
        self._database = open_for_writing(directory)
        self.recovery = self._recover()
        self.failure: LogError | None = None
        """Why nothing can be written any more; None: all is well."""
        self._mutex = threading.Lock()
        self._wal_pages = 0
        self._database.set_wal_hook(self._note_wal_pages)

    def write(self, rows: Sequence[Row]) -> list[int | None]:
        """One transaction; returns ordinals when it is on disk, None for an attempt that was there already.

        Raises as `transaction` does.
        """
        return self.transaction(lambda database: [database.execute(_INSERT, row).get for row in rows])

    def transaction(self, change: Callable[[apsw.Connection], Result]) -> Result:
        """Runs `change` in a transaction of its own and returns its result when that is on disk.

        Raises `LogFull` for want of room and `Unavailable` for anything else; see `failure` whether for good.
        """
        with self._mutex:
            self.check()
            try:
                self._database.execute("BEGIN IMMEDIATE")
                result = change(self._database)
                self._database.execute("COMMIT")
            except Exception as error:
                raise self._give_up(error) from error
            return result

    def check(self) -> None:
        """Raises `Unavailable` after a final failure."""
        if self.failure is not None:
            raise Unavailable("the log cannot be written", RETRY_AFTER_MS)

    def checkpoint(self, at_least_pages: int = CHECKPOINT_PAGES) -> None:
        """Moves the write-ahead log into the database when it has grown to so many pages."""
        with self._mutex:
            if self.failure is not None or self._wal_pages < at_least_pages:
                return
            self._wal_pages = 0
            try:
                self._database.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except (apsw.BusyError, apsw.LockedError, apsw.FullError):
                return  # the records are safe where they are; the next checkpoint moves them
            except apsw.Error as error:
                self._fail(error)

    def close(self) -> None:
        """Checkpoints and closes."""
        self.checkpoint(at_least_pages=1)
        try:
            self._database.close()
        except apsw.Error as error:
            self._fail(error)

    def _recover(self) -> Recovery:
        try:
            wal_frames, _ = self._database.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            records = self._database.execute("SELECT count(*) FROM records").get
            last = self._database.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'records'").get
        except apsw.Error as error:
            raise LogError(f"{self._path} cannot be recovered: {error}") from error
        sizes = (file.stat().st_size for file in (self._path, Path(f"{self._path}-wal")) if file.exists())
        return Recovery(records, last or 0, wal_frames if last else 0, sum(sizes))

    def _give_up(self, error: Exception) -> RequestError:
        """Undoes the transaction and says what its waiters are told; remembers what is final."""
        try:
            if self._database.in_transaction:  # SQLite has mostly undone it by itself, but need not have
                self._database.execute("ROLLBACK")
        except apsw.Error as rollback_error:
            return self._fail(rollback_error)
        if isinstance(error, apsw.FullError) or getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE:
            return LogFull("no room on the disk of the log")
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            return Unavailable("another program holds the log's database", RETRY_AFTER_MS)
        return self._fail(error)

    def _fail(self, error: Exception) -> RequestError:
        if self.failure is None:
            # Closing must not try again what failed to reach the disk.
            self._database.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self.failure = LogError(f"{self._path} failed and is closed for good: {error}")
            self._on_failure(self.failure)
        return Unavailable("the log cannot be written", RETRY_AFTER_MS)

    def _note_wal_pages(self, database: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK
