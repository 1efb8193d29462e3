"""What a run is told, and what it has seen of its server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import bon

from bon_server.soak import checks
from bon_server.soak.gauges import Gauges
from bon_server.soak.process import Footprint


@dataclass(frozen=True)
class SoakOptions:
    """What `bon bench soak` is told."""

    minutes: float = 30.0
    """Of traffic, the warm-up included."""
    concurrency: int = 32
    cancel_share: float = 0.2
    seed: int = 0
    memory_limit_mb_per_min: float = 1.0
    target: str | None = None
    """None: a server of its own."""
    metrics: str | None = None
    """Metrics endpoint of the target, host:port; None: not looked at."""
    log: Path | None = None
    """Of its own server, and kept; or of the target. None: a temporary folder; not looked at."""
    security: bon.Security = field(default_factory=lambda: bon.Security())


@dataclass(frozen=True)
class Place:
    """Where the server is, as far as it is known."""

    address: str
    metrics: str | None
    pid: int | None


@dataclass(frozen=True)
class Rest:
    """What a server holds that nobody asks anything. None: not known."""

    gauges: Gauges | None
    footprint: Footprint | None

    def is_back_at(self, before: Rest) -> bool:
        """Nothing goes on, and it holds about what it did."""
        if self.gauges and before.gauges and not (self.gauges.idle and self.gauges.tasks <= before.gauges.tasks):
            return False
        now, then = self.footprint, before.footprint
        return not now or not then or _flat(then, now)


@dataclass
class Seen:
    """What one run has shown."""

    version: str = ""
    seconds: float = 0.0
    """Of traffic."""
    before: Rest | None = None
    """After the warm-up; None: it did not come so far."""
    after: Rest | None = None
    memory: list[tuple[float, int]] = field(default_factory=list)
    """Seconds and resident bytes, after the warm-up."""
    ended: bool = False
    """Whether the server was found to have ended, or to answer no more."""


def _flat(before: Footprint, after: Footprint) -> bool:
    return (
        after.descriptors - before.descriptors <= checks.SPARE_DESCRIPTORS
        and after.threads - before.threads <= checks.SPARE_THREADS
    )
