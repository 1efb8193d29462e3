"""Sealing while a server runs: by size and by age, and once more at the end. And retention.

It has a thread of its own, and for what would hold up the commits a process for the length of each sealing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import apsw

from bon_server.config.settings import LogConfig
from bon_server.log.remove.expire import Retention, expire
from bon_server.log.seal.sealing import SealResult, seal, seal_beside_commits, waiting
from bon_server.log.spool.database import SPOOL_NAME, TRANSIENT, open_for_reading
from bon_server.log.spool.spool import Spool
from bon_server.system.supervision import start_thread

logger = logging.getLogger(__name__)

CHECK_S = 2.0
"""How often the spool is measured."""
RETRY_S = 30.0
"""Pause after a sealing that failed."""
EXPIRE_S = 60.0
"""How often the retention is applied, where there is one."""


class Sealer:
    """Seals a spool from its construction to `close`."""

    def __init__(self, spool: Spool, config: LogConfig) -> None:
        self._spool = spool
        self._config = config
        self._reading = open_for_reading(spool.directory / SPOOL_NAME)
        self._retention = Retention(config.retain_days, config.retain_bytes)
        self._expire_at_s = 0.0
        self.waiting_bytes = 0
        """Of records and feedback that are not sealed yet, as of the last look."""
        self.oldest_s: float | None = None
        """When the oldest of them came, seconds since 1970; None: there is none."""
        self.sealed_records = 0
        """Since the start."""
        self.failures = 0
        """Sealings that failed since the start."""
        self.expire_failures = 0
        """Applications of the retention that failed since the start."""
        self._stop = threading.Event()
        self._thread = start_thread("log-sealer", self._run, spool.fail)

    def close(self) -> None:
        """Waits for a sealing that is under way and, unless configured otherwise, seals what is left. Blocks."""
        self._stop.set()
        self._thread.join()
        self._reading.close()
        if self._config.seal_on_shutdown and self._spool.failure is None:
            self._try_to_seal(seal)  # nothing is committed any more
            self._try_to_save_clock()

    def _run(self) -> None:
        self._try_to_save_clock()  # before anything can be old
        while not self._stop.wait(CHECK_S) and self._spool.failure is None:
            if self._is_due() and not self._try_to_seal(seal_beside_commits):
                self._stop.wait(RETRY_S)
            if self._retention != Retention(None, None) and time.monotonic() >= self._expire_at_s:
                self._try_to_expire()
                self._expire_at_s = time.monotonic() + EXPIRE_S
            if self._spool.clock.save_is_due():
                self._try_to_save_clock()

    def _is_due(self) -> bool:
        try:
            size, oldest_us = waiting(self._reading)
        except TRANSIENT as error:
            logger.error("the spool cannot be measured (%s)", type(error).__name__)
            if isinstance(error, apsw.Error):
                self._spool.cannot_read(error)
            return False
        self.waiting_bytes, self.oldest_s = size, None if oldest_us is None else oldest_us / 1e6
        if self.oldest_s is None:
            return False
        age_s = time.time() - self.oldest_s
        return size >= self._config.seal_bytes or age_s >= self._config.seal_age_s

    def _try_to_seal(self, sealing: Callable[[Spool, int, float], SealResult]) -> bool:
        try:
            result = sealing(self._spool, self._config.seal_bytes, self._config.replay_window_s)
        except TRANSIENT as error:
            self.failures += 1
            logger.error(
                "sealing failed, what is not sealed stays in the spool: %s", str(error) or type(error).__name__
            )
            return False
        self.sealed_records += result.records
        if result.files:
            logger.info("sealed %d records into %d files", result.records, len(result.files))
        if result.left:
            logger.error("%d records cannot be sealed; see `bon log verify`", result.left)
        return True

    def _try_to_expire(self) -> None:
        if self._config.retain_days is not None:
            self._spool.clock.tell()
        try:
            gone = expire(self._spool, self._retention)
        except TRANSIENT as error:
            self.expire_failures += 1
            logger.error("old segments could not be removed: %s", str(error) or type(error).__name__)
            return
        if gone.segments:
            logger.info("removed %d old files with %d records", gone.segments, gone.records)

    def _try_to_save_clock(self) -> None:
        try:
            self._spool.transaction(self._spool.clock.save)
        except TRANSIENT as error:
            logger.warning("the time was not kept: %s", error)

    @property
    def doubt_s(self) -> float:
        """How far the clock is ahead of what the log proves, while anything is to be removed by age; 0: not at all."""
        by_age = self._config.retain_days is not None or not self._config.publish_keep_local
        return self._spool.clock.doubt_s if by_age else 0.0
