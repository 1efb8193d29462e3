"""Publishing while a server runs: in a thread of its own, which commits, sealing and the end of the server never wait
for, but for a bounded time at the very end."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from dataclasses import dataclass

import apsw

from bon_server.config.settings import LogConfig
from bon_server.log.publish.publishing import ONE_OBJECT, Publishing, pause_s
from bon_server.log.spool.database import SPOOL_NAME, TRANSIENT, open_for_reading
from bon_server.log.spool.spool import Spool
from bon_server.system.supervision import start_thread

logger = logging.getLogger(__name__)

CHECK_S = 2.0
"""How often new segments are looked for."""


class Publisher:
    """Publishes what a spool seals, from its construction to `close`. Raises as `Publishing` does."""

    def __init__(self, spool: Spool, config: LogConfig) -> None:
        self._spool = spool
        self._close_s = config.publish_close_s
        self._reading = open_for_reading(spool.directory / SPOOL_NAME)
        self.publishing = Publishing(spool, self._reading, config)
        self._stop = threading.Event()
        self._thread = start_thread("log-publisher", self._run, spool.fail)

    def close(self) -> None:
        """Tries to publish what is left, for a bounded time; the next start goes on with the rest. Blocks.

        An upload that is under way then is left alone: whether it arrives or not, nothing is lost or doubled.
        """
        self.publishing.until_s = time.monotonic() + self._close_s
        self._stop.set()
        self._thread.join(self._close_s)
        if self.publishing.backlog.segments:
            logger.warning("%d segments are not published yet; the next start does", self.publishing.backlog.segments)

    def _run(self) -> None:
        failures = 0
        with closing(self._reading):
            while not self._stop.wait(pause_s(failures) if failures else CHECK_S):
                failures = 0 if self._try_round() else failures + 1
            self._try_round()

    def _try_round(self) -> bool:
        try:
            self.publishing.round()
        except TRANSIENT as error:
            logger.error("publishing failed: %s", error)
            if isinstance(error, apsw.Error):
                self._spool.cannot_read(error)
            return False
        failure, waiting = self.publishing.last_failure, self.publishing.backlog.segments
        if failure is not None:
            logger.warning("publishing failed (%s), %d segments wait: %s", failure.kind, waiting, failure)
        return failure is None


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What `bon log publish` did."""

    published: int
    """Segments; those that were there already, with the same content, count."""
    removed: int
    """Local copies."""
    waiting: int
    """Segments that could not be published."""
    failure: str | None
    """Why not."""


def publish_all(spool: Spool, config: LogConfig, patience_s: float) -> PublishResult:
    """Publishes what is sealed; blocks. patience_s: how long failures are tried again.

    Raises as `Publishing` and `Publishing.round` do.
    """
    until_s = time.monotonic() + patience_s
    failures = 0
    with closing(open_for_reading(spool.directory / SPOOL_NAME)) as reading:
        publishing = Publishing(spool, reading, config)
        publishing.round()
        while (failure := publishing.last_failure) is not None and failure.kind not in ONE_OBJECT:
            failures += 1
            pause = pause_s(failures)
            if time.monotonic() + pause > until_s:
                break
            time.sleep(pause)
            publishing.round()
    waiting = publishing.backlog.segments
    return PublishResult(publishing.published, publishing.removed, waiting, None if failure is None else str(failure))
