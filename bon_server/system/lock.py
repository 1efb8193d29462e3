"""The writer lock: one process at a time writes a log folder.

`LOG/writer.lock` is held with flock, so the kernel releases it when the process ends, however it ends. The file says
who holds it, so that a refusal can name the holder. The folder itself is held in the same way: a lock file that is
deleted or replaced lets nobody else in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path

from bon_server.core.errors import LogError, LogLocked

LOCK_NAME = "writer.lock"
_LOCKS = Path("/proc/locks")
_NO_LOCKS_ON_FOLDERS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)
"""What network file systems say; there the file's lock is the only one."""
_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child shares the open files and would keep the locks after its parent is killed."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class WriterLock:
    """Held from construction to `release`. Raises `LogLocked`, naming the holder, when another process holds it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_NAME
        self._descriptors: list[int] = []
        try:
            self._lock(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._lock(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except BlockingIOError:
            named = _named_in(directory)
            self.release()
            raise LogLocked(f"{directory} is being written by another process: {named}") from None
        except BaseException:
            self.release()
            raise
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(self._descriptors[-1], 0)
        os.pwrite(self._descriptors[-1], f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)

    def check(self) -> None:
        """Raises `LogError` when the lock file is no longer the one that is held."""
        held = os.fstat(self._descriptors[-1])
        try:
            now = self._path.stat()
        except OSError as error:
            happened = "was deleted" if isinstance(error, FileNotFoundError) else f"is lost: {error.strerror}"
        else:
            if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
                return
            happened = "was replaced"
        raise LogError(f"{self._path} {happened} while this process held it: who did that may be writing the log too")

    def release(self) -> None:
        """Lets the next writer in; the file stays."""
        for descriptor in self._descriptors:
            if descriptor in _held:
                _held.remove(descriptor)
                os.close(descriptor)
        self._descriptors.clear()

    def _lock(self, descriptor: int) -> None:
        self._descriptors.append(descriptor)
        _held.add(descriptor)
        _try_lock(descriptor, fcntl.LOCK_EX)


def holder(directory: Path) -> str | None:
    """Who writes this log, which has been written before; None: nobody. Raises OSError.

    Changes nothing, but a writer that starts in this very moment may find the lock taken.
    """
    (directory / LOCK_NAME).stat()
    for path in (directory, directory / LOCK_NAME):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _try_lock(descriptor, fcntl.LOCK_SH)
        except BlockingIOError:
            return _named_in(directory)
        finally:
            os.close(descriptor)
    return None


def _try_lock(descriptor: int, kind: int) -> None:
    """Raises BlockingIOError."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS_ON_FOLDERS or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise


def _named_in(directory: Path) -> str:
    """The holder, as the lock file has it, or the kernel: the file may be missing, or another's."""
    known = _process_with(directory)
    try:
        said = (directory / LOCK_NAME).read_bytes()[:512].decode(errors="replace").strip()
    except OSError:
        said = ""
    if known is None:
        return said or "not yet named"
    return said if said.startswith(f"{known} ") else f"{known}; {LOCK_NAME} says {said!r}"


def _process_with(directory: Path) -> str | None:
    """The process that the kernel says has locked a folder; None: it does not say."""
    try:
        status = directory.stat()
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for words in map(str.split, lines):
        if words[1] == "FLOCK" and words[5] == file:
            return f"pid {words[4]}"
    return None
