"""Transactions on the spool, one at a time: what is on disk, what may be tried again, what is final.

A full disk fails the transaction at hand and is tried again with the next. Any other error of SQLite or of fsync is
final: what is on disk is then unknown, so nothing is written any more. So are a read that fails, but
for a lock that another program holds, and a file that is no longer the one at its path (`log_files.py`).

With durability `async` a transaction counts when the kernel has it: the end of this process loses nothing, the end of
the machine's power what was not yet synced (`Writer.sync`).

Commits go to the write-ahead log, and pages move from there into the database later. `WriteAheadLog` syncs and moves
them with a descriptor and a connection of its own, so that both run while the writer commits.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import apsw

from bon_server.core.errors import LogError, LogFull, RequestError, Unavailable
from bon_server.core.types import Durability
from bon_server.log.spool.database import SPOOL_NAME, SpoolRow, open_for_writing
from bon_server.log.spool.log_files import LogFiles
from bon_server.system.files import sync_folder
from bon_server.system.lock import WriterLock
from bon_server.system.supervision import place_of

SIZE_LIMIT_BYTES = 64 << 20
"""A write-ahead log that a slow reader has let grow larger is cut back to this when it starts anew."""
LEFT_PAGES = 64
"""So few pages are moved fast enough to do it while commits wait."""
ROUNDS = 3


class WriteAheadLog:
    """Beside an open database. Raises `LogError` when it cannot be opened or synced."""

    def __init__(self, database_file: Path) -> None:
        self._database_file = database_file
        path = Path(f"{database_file}-wal")
        try:
            # SQLite keeps the file while a connection is open, and holds no locks on it that closing would drop.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._mover = apsw.Connection(str(database_file), flags=apsw.SQLITE_OPEN_READWRITE)
        except (OSError, apsw.Error) as error:
            raise LogError(f"{path} cannot be opened: {error}") from error
        self._mover.wal_autocheckpoint(0)
        self._mover.pragma("synchronous", "FULL")
        self._mover.pragma("fullfsync", True)

    @property
    def errno(self) -> int:
        """Of the last system call that failed while moving pages."""
        return self._mover.system_errno

    def make_durable(self) -> None:
        """Syncs the file and its name.

        A killed writer leaves transactions that are whole but were never synced; SQLite finds them, and an answer
        that rests on them must not be given before this.
        """
        try:
            self.sync()
            sync_folder(self._database_file.parent)
        except OSError as error:
            raise LogError(f"{self._database_file} cannot be synced: {error.strerror}") from error

    def sync(self) -> None:
        """Returns when all that was committed before is on disk. Raises OSError, which is final."""
        os.fsync(self._descriptor)

    def move(self) -> tuple[int, int]:
        """Moves what no reader holds back into the database, synced; returns the pages there were, and those left.

        Raises `apsw.Error`.
        """
        pages, moved = self._mover.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return pages, pages - moved

    def close(self, leave_as_it_is: bool) -> None:
        """Lets go. leave_as_it_is: nothing is moved, also not when this is the last connection."""
        if leave_as_it_is:
            self._mover.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._mover.close()
        os.close(self._descriptor)


Result = TypeVar("Result")
CHECKPOINT_PAGES = 1_000
"""Pages in the write-ahead log (about 4 MB) that are worth moving into the database. Moving them takes 16 ms, beside
the commits; 4,000 take 50 ms and lengthen the longest commits, 250 are moved too often."""
RETRY_AFTER_MS = 1_000
_PASSING = (apsw.BusyError, apsw.LockedError, apsw.NoMemError, apsw.InterruptError, apsw.ConnectionClosedError)
"""Failed reads that say nothing of the log."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Failed writes that mean a full disk, a used-up quota, a limit on the size of files."""

INSERT_RECORD = (
    "INSERT INTO records (principal, request_id, attempt, kind, outcome, created_at_us, sha256, record)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING ordinal"
)
_FILL = (
    "INSERT INTO records (principal, request_id, attempt, kind, outcome, created_at_us, sha256, record)"
    " VALUES ('', '', -1, '', '', 0, zeroblob(0), zeroblob(?))"
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

    def __str__(self) -> str:
        found = f"{self.records:,} records found" if self.records else "no records found"
        return found + (f", {self.wal_frames} pages recovered from an unclean end" if self.wal_frames else "")


class Writer:
    """The one writing connection to a spool. Its methods may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        lock: WriterLock,
        on_failure: Callable[[LogError], None],
        durability: Durability = Durability.FSYNC,
    ) -> None:
        self._path = directory / SPOOL_NAME
        self._on_failure = on_failure
        self._synced_by_commit = durability is not Durability.ASYNC
        self._database = open_for_writing(directory)
        self._database.pragma("journal_size_limit", SIZE_LIMIT_BYTES)
        self._wal = WriteAheadLog(self._path)
        self.recovery = self._recover()
        self._files = LogFiles(directory, lock, self._database.pragma("page_size"))
        # NORMAL: commits leave the sync to `sync`; checkpoints and a new start of the write-ahead log still sync.
        self._database.pragma("synchronous", "FULL" if self._synced_by_commit else "NORMAL")
        self.failure: LogError | None = None
        """Why nothing can be written any more; None: all is well."""
        self.syncs: Counter[str] = Counter()
        """Times the disk was waited for, by cause: `commit`, `checkpoint`, `background`."""
        self._mutex = threading.Lock()
        self._failing = threading.Lock()
        self._unsynced = False
        self._wal_pages = 0
        self._checkpoint_at_pages = CHECKPOINT_PAGES
        self._database.set_wal_hook(self._note_commit)

    def write(self, rows: Sequence[SpoolRow]) -> list[int | None]:
        """One transaction; returns ordinals when it is on disk, None for an attempt that was there already.

        Raises as `transaction` does.
        """
        return self.transaction(lambda database: [database.execute(INSERT_RECORD, row).get for row in rows])

    def transaction(self, change: Callable[[apsw.Connection], Result]) -> Result:
        """Runs `change` in a transaction of its own and returns its result when that is on disk (`async`: written).

        Raises `LogFull` for want of room and `Unavailable` for anything else; see `failure` whether for good.
        """
        with self._mutex:
            self.check()
            try:
                self._files.before_commit()
                self._database.execute("BEGIN IMMEDIATE")
                result = change(self._database)
                self._database.execute("COMMIT")
                self._files.committed()
            except Exception as error:
                raise self._give_up(error) from error
            return result

    def check(self) -> None:
        """Raises `Unavailable` after a final failure."""
        if self.failure is not None:
            raise Unavailable("the log cannot be written", RETRY_AFTER_MS)

    def fail(self, why: str) -> None:
        """Nothing is written any more: what the log depends on has broken."""
        self._fail(LogError(why))

    def look(self) -> bool:
        """Whether the files are still those that are written to; if not, it is final."""
        with self._mutex:
            try:
                self._files.look()
            except (LogError, OSError) as error:
                self._fail(error)
                return False
        return True

    def cannot_read(self, error: Exception) -> RequestError:
        """What whoever wanted to read is told. Final, unless another program holds the database just now."""
        if isinstance(error.__cause__ if isinstance(error, LogError) else error, _PASSING):
            return Unavailable("the log cannot be read", RETRY_AFTER_MS)
        self._fail(error)
        return Unavailable("the log cannot be read", RETRY_AFTER_MS)

    def sync(self) -> None:
        """Makes durable what was committed without waiting for the disk. An error is final."""
        if not self._unsynced or self.failure is not None:
            return
        self._unsynced = False
        try:
            self._wal.sync()
        except OSError as error:
            self._fail(error)
        self.syncs["background"] += 1

    def probe(self, size_bytes: int) -> None:
        """Writes so much where the next commit would, and takes it back. Raises as `transaction` does."""
        with self._mutex:
            self.check()
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute(_FILL, (size_bytes,))
                self._database.cache_flush()
                self._database.execute("ROLLBACK")
            except Exception as error:
                raise self._give_up(error) from error

    @property
    def checkpoint_due(self) -> bool:
        """The write-ahead log has grown enough."""
        return self._wal_pages >= self._checkpoint_at_pages

    def checkpoint(self, at_least_pages: int | None = None) -> None:
        """Moves the write-ahead log into the database when it has grown to so many pages; None: enough.

        Most of it moves while commits go on; they wait only while the few pages move that came meanwhile, without
        which the file could never start anew.
        """
        if self.failure is not None or self._wal_pages < (at_least_pages or self._checkpoint_at_pages):
            return
        if not self.look():  # what others did to the database must not pass for what is done here
            return
        try:
            for _ in range(ROUNDS):
                _, left = self._wal.move()
                if left <= LEFT_PAGES:
                    break
            with self._mutex:
                self._wal_pages = 0
                _, left = self._wal.move()
            self._checkpoint_at_pages = left + CHECKPOINT_PAGES  # what a reader holds back is not tried again at once
            self.syncs["checkpoint"] += 1
        except (apsw.BusyError, apsw.LockedError):
            pass  # the records are safe where they are; the next checkpoint moves them
        except apsw.Error as error:
            if not _is_no_room(error, self._wal.errno):
                self._fail(error)
        try:
            self._files.moved()
        except LogError as error:
            self._fail(error)

    def close(self) -> None:
        """Syncs, checkpoints and closes."""
        self.sync()
        self.checkpoint(at_least_pages=1)
        try:
            if self.failure is not None:  # closing must not try again what failed to reach the disk
                self._database.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._wal.close(leave_as_it_is=self.failure is not None)
            self._database.close()
        except apsw.Error as error:
            self._fail(error)

    def _recover(self) -> Recovery:
        try:
            self._wal.make_durable()
            wal_frames, _ = self._wal.move()
            records = self._database.execute("SELECT count(*) FROM records").get
            last = self._database.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'records'").get
        except apsw.Error as error:
            raise LogError(f"{self._path} cannot be recovered: {error}") from error
        sizes = (file.stat().st_size for file in (self._path, Path(f"{self._path}-wal")) if file.exists())
        return Recovery(records, last or 0, wal_frames if last else 0, sum(sizes))

    def _give_up(self, error: Exception) -> RequestError:
        """Undoes the transaction and says what its waiters are told; remembers what is final."""
        no_room = _is_no_room(error, self._database.system_errno)
        try:
            if self._database.in_transaction:  # SQLite has mostly undone it by itself, but need not have
                self._database.execute("ROLLBACK")
        except apsw.Error as rollback_error:
            return self._fail(rollback_error)
        if no_room:
            return LogFull("no room on the disk of the log")
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            return Unavailable("another program holds the log's database", RETRY_AFTER_MS)
        return self._fail(error)

    def _fail(self, error: Exception) -> RequestError:
        with self._failing:
            if self.failure is None:
                self.failure = LogError(f"the log is closed for good: {self._reason(error)}")
                self._on_failure(self.failure)
        return Unavailable("the log cannot be written", RETRY_AFTER_MS)

    def _reason(self, error: Exception) -> str:
        """With the file that was deleted or replaced, where this is why SQLite could not go on."""
        try:
            self._files.check_paths()
        except LogError as changed:
            return str(changed)
        if isinstance(error, LogError):
            return str(error)
        expected = isinstance(error, apsw.Error | OSError)  # another's message may quote a record
        return f"{self._path} failed: {error if expected else place_of(error)}"

    def _note_commit(self, database: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = pages
        self._files.frames(pages)
        if self._synced_by_commit:
            self.syncs["commit"] += 1
        else:
            self._unsynced = True
        return apsw.SQLITE_OK


def _is_no_room(error: Exception, system_errno: int) -> bool:
    """A write that failed for want of room; a sync that failed for the same is final all the same."""
    if isinstance(error, apsw.FullError):
        return True
    code = getattr(error, "extendedresult", 0)
    return (code == apsw.SQLITE_IOERR_WRITE and system_errno in NO_ROOM) or code == apsw.SQLITE_IOERR_SHMSIZE
