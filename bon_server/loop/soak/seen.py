"""What a run has seen of its server: what its metrics endpoint says, and what its process holds by Linux's /proc."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from bon_server.core.errors import StartupError
from bon_server.loop.soak import checks

SCRAPE_S = 10.0


@dataclass(frozen=True)
class Gauges:
    """One scrape."""

    tasks: int
    """Tasks of the event loop."""
    permits: int
    """Candidates that hold a permit."""
    queued: int
    """Candidates that wait for one."""
    attempts: int
    """Requests running or waiting."""
    calls: int
    """Calls whose handler has not ended."""

    @property
    def idle(self) -> bool:
        """Nobody asks anything, and nothing goes on for those who did."""
        return not (self.permits or self.queued or self.attempts or self.calls)


def scrape(address: str) -> Gauges:
    """From the endpoint at `host:port`. Raises OSError when it does not answer, StartupError when it is not ours."""
    with urlopen(f"http://{address}/metrics", timeout=SCRAPE_S) as answer:
        text: str = answer.read().decode()
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] += int(sample.value) if sample.name in _NAMES else 0
    missing = _NAMES - sums.keys()
    if missing:
        raise StartupError(f"the metrics at {address} lack {min(missing)}")
    started, ended = sums["bon_requests_started_total"], sums["bon_requests_total"]
    return Gauges(
        tasks=sums["bon_event_loop_tasks"],
        permits=sums["bon_candidates_in_flight"],
        queued=sums["bon_candidates_queued"],
        attempts=sums["bon_attempts_in_flight"],
        calls=started - ended,
    )


_NAMES = {
    "bon_event_loop_tasks",
    "bon_candidates_in_flight",
    "bon_candidates_queued",
    "bon_attempts_in_flight",
    "bon_requests_started_total",
    "bon_requests_total",
}


@dataclass(frozen=True)
class Footprint:
    """One look at one process, its children not included."""

    rss_bytes: int
    """Resident memory."""
    descriptors: int
    """Open files, sockets and pipes."""
    threads: int


def footprint(pid: int) -> Footprint | None:
    """None: it is gone, or waits only to be reaped."""
    folder = Path("/proc", str(pid))
    try:
        lines = (folder / "status").read_text(encoding="ascii", errors="replace").splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        if "VmRSS" not in status:
            return None
        rss_kib = int(status["VmRSS"].split()[0])
        return Footprint(rss_kib << 10, sum(1 for _ in (folder / "fd").iterdir()), int(status["Threads"]))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


@dataclass(frozen=True)
class ServerAddress:
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
class RunObservations:
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
