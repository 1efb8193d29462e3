"""The writer lock: one process at a time writes a log folder.

`LOG/writer.lock` is held with flock, so the kernel releases it when the process ends, however it ends. The file says
who holds it, so that a refusal can name the holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from bon_server.errors import LogLocked

LOCK_NAME = "writer.lock"
_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child shares the open file and would keep the lock after its parent is killed."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class WriterLock:
    """Held from construction to `release`. Raises `LogLocked`, naming the holder, when another process holds it."""

    def __init__(self, directory: Path) -> None:
        path = directory / LOCK_NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            named = _named_in(self._descriptor)
            os.close(self._descriptor)
            raise LogLocked(f"{directory} is being written by another process: {named}") from None
        _held.add(self._descriptor)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)

    def release(self) -> None:
        """Lets the next writer in; the file stays."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.close(self._descriptor)


def holder(directory: Path) -> str | None:
    """Who writes this log, which has been written before; None: nobody. Raises OSError.

    Changes nothing, but a writer that starts in this very moment may find the lock taken.
    """
    descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named_in(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _named_in(descriptor: int) -> str:
    return os.pread(descriptor, 512, 0).decode(errors="replace").strip() or "not yet named"
