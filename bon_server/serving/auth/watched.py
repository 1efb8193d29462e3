"""What is made of files that an operator may change while the server runs: certificates, API keys."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from bon_server.core.errors import ConfigError

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""The files are looked at no more often; what is revoked works for so long."""

WAIT_S = 1.0
"""A call waits no longer for a look at the files, such as one at a file system that does not answer."""
_looks = ThreadPoolExecutor(1, thread_name_prefix="watched-files")
"""Of its own: in asyncio's, which all blocking work shares, who calls could not be checked while that is full."""

Made = TypeVar("Made")


class Watched(Generic[Made]):
    """Made anew when a file changes. What cannot be used leaves the earlier in use, and is told once.

    For any thread; nothing happens between calls, so there is nothing to close.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], Made]) -> None:
        """make: raises `ConfigError` where the files cannot be used, and then so does this."""
        self._paths = paths
        self._make = make
        self._turn, self._looking = threading.Lock(), threading.Lock()
        self._look_again_s = 0.0
        # Before they are read: a change in between is then found at the next look.
        self._seen = [_identity(path) for path in paths]
        self._made = make()

    @property
    def latest(self) -> Made:
        """What was made last; looks at no file."""
        return self._made

    def current(self) -> Made:
        """What the files hold, or held when they could last be used. Reads them where they have changed."""
        if self._is_due():
            self._look()
        return self._made

    async def current_off_loop(self) -> Made:
        """As `current`, for the event loop: a thread looks at the files."""
        if self._is_due() and not self._looking.locked():
            look = asyncio.get_running_loop().run_in_executor(_looks, self._look)
            await asyncio.wait((look,), timeout=WAIT_S)
            if look.done():
                look.result()
        return self._made

    def _is_due(self) -> bool:
        """True for one caller each time, so that no other waits."""
        with self._turn:
            now_s = time.monotonic()
            if now_s < self._look_again_s:
                return False
            self._look_again_s = now_s + LOOK_S
            return True

    def _look(self) -> None:
        if not self._looking.acquire(blocking=False):
            return  # reading takes longer than `LOOK_S`
        try:
            self._read_if_changed()
        finally:
            self._looking.release()

    def _read_if_changed(self) -> None:
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
