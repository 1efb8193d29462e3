"""What is done beside the commits, on a thread of its own: checkpoints, the syncs of durability `async`, looks.

Every second it looks at the free space, and whether the log's files are still those that are written to.
"""

from __future__ import annotations

import threading
import time

from bon_server.log.room import LOOK_EVERY_S, Room
from bon_server.log.writer import Writer
from bon_server.supervision import start_thread


class Upkeep:
    """Runs from construction to `close`.

    sync_every_s: how often commits that did not wait for a sync are synced. None: all of them do.
    """

    def __init__(self, writer: Writer, room: Room, sync_every_s: float | None) -> None:
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
