"""What is done beside the commits, on a thread of its own: checkpoints, the syncs of durability `async`, looks.

Every second the thread looks at the free space, and whether the log's files are still those that are written to.

`DiskRoom` says whether there is room for more work. Below a low-water mark of free bytes new work is refused, so that
what is being worked on can still be committed. A commit that fails for want of room closes the log at once, whatever
the mark says: quotas and limits do not show in the free bytes. It is open again when there is room above the mark and
as much as failed could be written.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bon_server.core.errors import LogFull, RequestError
from bon_server.log.spool.writer import Writer
from bon_server.system.supervision import start_thread

LOOK_EVERY_S = 1.0


class DiskRoom:
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


class Upkeep:
    """Runs from construction to `close`.

    sync_every_s: how often commits that did not wait for a sync are synced. None: all of them do.
    """

    def __init__(self, writer: Writer, room: DiskRoom, sync_every_s: float | None) -> None:
        self._writer = writer
        self._room = room
        self._syncs = sync_every_s is not None
        self._pause_s = min(LOOK_EVERY_S, sync_every_s or LOOK_EVERY_S)
        self._wake = threading.Event()
        self._closing = False
        self._thread = start_thread("log-upkeep", self._run, writer.fail)

    def committed(self) -> None:
        """Tells that there may be something to move; called after each commit."""
        if self._writer.checkpoint_due:
            self._wake.set()

    def close(self) -> None:
        """Ends the thread; what it is doing is done to the end."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        looked_s = time.monotonic()
        while not self._closing:
            self._wake.wait(self._pause_s)
            self._wake.clear()
            if self._syncs:
                self._writer.sync()
            self._writer.checkpoint()
            if time.monotonic() - looked_s >= LOOK_EVERY_S:
                self._writer.look()
                self._room.look(self._writer.probe)
                looked_s = time.monotonic()
