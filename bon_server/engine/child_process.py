"""A child process that lives and dies with its parent. Imports nothing heavy: it runs early in that process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def live_and_die_with_parent() -> None:
    """Leaves the terminal's process group, and kills this process and its children as soon as its parent is gone.

    Called in a child that `multiprocessing` started; does nothing elsewhere.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    os.setpgid(0, 0)

    def watch() -> None:
        try:
            wait([parent.sentinel])
            for child in multiprocessing.active_children():
                child.kill()
        finally:  # also where this thread has a bug: nobody would watch any more
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
