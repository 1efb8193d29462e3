"""What an engine tells of itself, for the metrics: vLLM's own, and how long ago it made its last step.

Imports no vLLM: a server without an engine knows the type too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry


class Telemetry:
    """Of one engine. Written by one thread, mostly the event loop's; may be read from any."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """Its own: an engine takes those of an earlier one out of the default registry."""
        self._working = 0
        self._stepped_s = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a request is in the engine."""
        if not self._working:
            self._stepped_s = time.monotonic()
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    def stepped(self) -> None:
        """The engine has made a step."""
        self._stepped_s = time.monotonic()

    @property
    def stalled_s(self) -> float:
        """Since it last made a step, in seconds; 0 while there is nothing to do."""
        return time.monotonic() - self._stepped_s if self._working else 0.0
