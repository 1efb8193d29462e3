"""What is made of files that an operator may change while the server runs: certificates, API keys."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from bon_server.errors import ConfigError

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""The files are looked at no more often; what is revoked works for so long."""

Made = TypeVar("Made")


class Watched(Generic[Made]):
    """Made anew when a file changes. What cannot be used leaves the earlier in use, and is told once.

    For any thread; nothing happens between calls, so there is nothing to close.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], Made]) -> None:
        """make: raises `ConfigError` where the files cannot be used, and then so does this."""
        self._paths = paths
        self._make = make
        self._looking = threading.Lock()
        self._look_again_s = 0.0
        # Before they are read: a change in between is then found at the next look.
        self._seen = [_identity(path) for path in paths]
        self._made = make()

    def current(self) -> Made:
        """What the files hold, or held when they could last be used."""
        if time.monotonic() >= self._look_again_s and self._looking.acquire(blocking=False):
            try:
                self._look()
                self._look_again_s = time.monotonic() + LOOK_S
            finally:
                self._looking.release()
        return self._made

    def _look(self) -> None:
        seen = [_identity(path) for path in self._paths]
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._made = self._make()
        except ConfigError as error:
            logger.error("%s; what was read earlier stays in use", error)
        else:
            logger.info("read anew: %s", ", ".join(map(str, self._paths)))


def _identity(path: Path) -> tuple[int, ...] | None:
    """Differs after each change, also where another file took the name; None: not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
