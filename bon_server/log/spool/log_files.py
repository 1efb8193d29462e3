"""Whether the files at a log's paths are still those that are written to, and as the writer left them.

SQLite goes on with a file that was deleted or replaced: commits succeed, and nobody will ever find them. So the writer
looks by itself: at the two files that commits go to before an answer leaves, and at all of them every second.

What a look cannot tell: bytes that were changed in the write-ahead log without cutting it short, which whoever reads
them finds; and whatever happens to records after they were acknowledged, which a message can only name.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bon_server.core.errors import LogError
from bon_server.log.segments.files import FEEDBACK_FOLDER, FOLDER
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.system.lock import WriterLock

_UNSEALED = "acknowledged records and feedback that are in no segment were in it"
_SEALED = "what was sealed was in it"
_HELD = {
    "": "the whole log is in it",
    SPOOL_NAME: _UNSEALED,
    f"{SPOOL_NAME}-wal": _UNSEALED,
    f"{SPOOL_NAME}-shm": "without it other programs read what is being changed",
    FOLDER: _SEALED,
    FEEDBACK_FOLDER: _SEALED,
}
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24


class LogFiles:
    """Of one log that is open for writing. Its methods raise `LogError`, which names the file and what happened."""

    def __init__(self, directory: Path, lock: WriterLock, page_bytes: int) -> None:
        self._directory = directory
        self._lock = lock
        self._frame_bytes = _FRAME_HEADER_BYTES + page_bytes
        self._wal_bytes = 0
        self._spool, self._wal = directory / SPOOL_NAME, directory / f"{SPOOL_NAME}-wal"
        self._before: dict[Path, os.stat_result] = {}
        self._note(directory, self._spool, self._wal, directory / f"{SPOOL_NAME}-shm")
        self._left = self._before[self._spool]

    def before_commit(self) -> None:
        """Call it before a transaction: afterwards a file that was cut short is long enough again."""
        self._check_wal()

    def committed(self) -> None:
        """Call it before a transaction is acknowledged: two calls of stat."""
        self._check_wal()
        now = self._unchanged(self._spool)
        if now.st_size < self._left.st_size:
            raise _happened(self._spool, f"was cut short, from {self._left.st_size} bytes to {now.st_size}")

    def frames(self, count: int) -> None:
        """So many pages of the write-ahead log were committed; call it where commits are."""
        self._wal_bytes = _WAL_HEADER_BYTES + count * self._frame_bytes

    def moved(self) -> None:
        """Pages were moved into the database by ourselves, who alone do that."""
        self._left = self._unchanged(self._spool)

    def look(self) -> None:
        """At everything. Not while a transaction or a checkpoint is under way."""
        self.check_paths()
        now = self._unchanged(self._spool)
        if (now.st_size, now.st_mtime_ns) != (self._left.st_size, self._left.st_mtime_ns):
            raise _happened(self._spool, "was written to by another program")
        self._lock.check()
        self._note(*(self._directory / folder for folder in (FOLDER, FEEDBACK_FOLDER)))

    def check_paths(self) -> None:
        """At what a checkpoint of our own does not change."""
        for path in self._before:
            self._unchanged(path)
        self.committed()

    def _note(self, *paths: Path) -> None:
        """Remembers files that are there, each as it first was."""
        for path in paths:
            if path not in self._before and path.exists():
                self._before[path] = path.stat()

    def _check_wal(self) -> None:
        now = self._unchanged(self._wal)
        if now.st_size < self._wal_bytes:
            raise _happened(self._wal, f"was cut short, from {self._wal_bytes} bytes or more to {now.st_size}")

    def _unchanged(self, path: Path) -> os.stat_result:
        before = self._before[path]
        try:
            now = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise self._gone(path) from None
        except OSError as error:
            raise _happened(path, f"cannot be reached: {error.strerror}") from error
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            raise _happened(path, "was replaced")
        if before.st_mode & ~now.st_mode & stat.S_IRWXU:
            was, is_now = stat.S_IMODE(before.st_mode), stat.S_IMODE(now.st_mode)
            raise LogError(f"{path} was given mode {is_now:04o}; it had {was:04o}, which the writer needs")
        return now

    def _gone(self, path: Path) -> LogError:
        whole = path if self._directory.exists() else self._directory
        return _happened(whole, "was deleted or moved away")


def _happened(path: Path, what: str) -> LogError:
    held = _HELD.get(path.name, _HELD[""])
    return LogError(f"{path} {what} while this process wrote the log: {held}; look at it before the next start")
