"""What a server says it holds: its metrics endpoint."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from bon_server.errors import StartupError

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
