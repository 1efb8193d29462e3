"""Whether the log's disk has room for more work.

Below a low-water mark of free bytes new work is refused, so that what is being worked on can still be committed. A
commit that fails for want of room closes the log at once, whatever the mark says: quotas and limits do not show in the
free bytes. It is open again when there is room above the mark and as much as failed could be written.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from bon_server.errors import LogFull, RequestError

LOOK_EVERY_S = 1.0


class Room:
    """The room on the disk of one folder. May be used from any thread."""

    def __init__(self, directory: Path, min_free_bytes: int) -> None:
        self._directory = directory
        self._min_free_bytes = min_free_bytes
        self._mutex = threading.Lock()
        self._failed_bytes = 0
        self.free_bytes = self._measure()
        """As of the last look."""
        self.full = self.free_bytes < min_free_bytes
        """New work must not be taken on."""

    def check(self) -> None:
        """Raises `LogFull` while there is no room."""
        if self.full:
            raise LogFull("no room on the disk of the log")

    def ran_out(self, needed_bytes: int) -> None:
        """So much could not be written."""
        with self._mutex:
            self._failed_bytes = max(self._failed_bytes, needed_bytes)
            self.full = True

    def look(self, probe: Callable[[int], None]) -> None:
        """Measures again. `probe` tries to write so many bytes, and raises a `RequestError` when that fails."""
        with self._mutex:
            try:
                self.free_bytes = self._measure()
            except OSError:
                self.free_bytes = 0  # the folder has gone; there is certainly no room in it
            if self.free_bytes < self._min_free_bytes:
                self.full = True
                return
            if self._failed_bytes:
                try:
                    probe(self._failed_bytes)
                except RequestError:
                    return
            self._failed_bytes = 0
            self.full = False

    def _measure(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize
