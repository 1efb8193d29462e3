"""The write-ahead log: the file that commits go to, and from which pages move into the database later.

Both jobs have a connection or a descriptor of their own, so that they run while the writer commits.
"""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from bon_server.errors import LogError
from bon_server.log.whole_file import sync_folder

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
