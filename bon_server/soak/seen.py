"""What a run has seen of its server."""

from __future__ import annotations

from dataclasses import dataclass, field

from bon_server.soak import checks
from bon_server.soak.gauges import Gauges
from bon_server.soak.process import Footprint


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
