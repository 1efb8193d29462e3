"""The log's state as Prometheus sees it, read from the spool when it is scraped."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from bon_server.log.publisher import Publisher
from bon_server.log.publishing import Publishing
from bon_server.log.sealer import Sealer
from bon_server.log.spool import Spool
from bon_server.log.store import FAILURES
from bon_server.types import Durability

SYNC_CAUSES = ("commit", "checkpoint", "background")


class LogCollector(Collector):
    """To be registered beside the metrics that count."""

    def __init__(
        self, spool: Spool, sealer: Sealer, durability: Durability, publisher: Publisher | None = None
    ) -> None:
        self._spool = spool
        self._sealer = sealer
        self._durability = durability
        self._publisher = publisher

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        spool = self._spool
        yield InfoMetricFamily("bon_log", "How the log is kept.", {"durability": self._durability.value})
        yield GaugeMetricFamily("bon_log_queue_records", "Records not yet acknowledged.", spool.queued_records)
        yield GaugeMetricFamily("bon_log_queue_bytes", "The same, encoded, in bytes.", spool.queued_bytes)
        yield GaugeMetricFamily("bon_log_full", "1 while there is no room for new work.", spool.full)
        yield GaugeMetricFamily("bon_log_free_bytes", "Free on the disk of the log.", spool.free_bytes)
        yield GaugeMetricFamily("bon_log_failed", "1 after a final failure.", spool.failure is not None)
        syncs = CounterMetricFamily("bon_log_syncs", "Times the log waited for the disk, by cause.", labels=["cause"])
        for cause in SYNC_CAUSES:
            syncs.add_metric([cause], spool.syncs[cause])
        yield syncs
        yield from _sealed(self._sealer)
        if self._publisher is not None:
            yield from _published(self._publisher.publishing)


def _sealed(sealer: Sealer) -> Iterator[Metric]:
    oldest_s = sealer.oldest_s
    age_s = 0.0 if oldest_s is None else max(0.0, time.time() - oldest_s)
    named = "Committed records and feedback that are not sealed yet"
    yield GaugeMetricFamily("bon_log_unsealed_bytes", f"{named}, in bytes.", sealer.waiting_bytes)
    yield GaugeMetricFamily("bon_log_unsealed_oldest_seconds", f"{named}: how long ago the oldest came.", age_s)
    yield CounterMetricFamily("bon_log_sealed_records", "Records sealed since the start.", sealer.sealed_records)
    yield CounterMetricFamily("bon_log_seal_failures", "Sealings that failed.", sealer.failures)
    yield CounterMetricFamily("bon_log_expire_failures", "Removals of old files that failed.", sealer.expire_failures)
    yield GaugeMetricFamily(
        "bon_log_clock_doubt_seconds",
        "How far the clock is ahead of the time that the log proves, so that nothing is removed by age; 0: it is not.",
        sealer.doubt_s,
    )


def _published(publishing: Publishing) -> Iterator[Metric]:
    waiting = publishing.backlog
    age_s = 0.0 if waiting.oldest_s is None else max(0.0, time.time() - waiting.oldest_s)
    named = "Sealed segments that are not published yet"
    yield GaugeMetricFamily("bon_log_publish_waiting_segments", f"{named}.", waiting.segments)
    yield GaugeMetricFamily("bon_log_publish_waiting_bytes", f"{named}, in bytes.", waiting.bytes)
    yield GaugeMetricFamily("bon_log_publish_oldest_seconds", f"{named}: how long ago the oldest was sealed.", age_s)
    yield CounterMetricFamily("bon_log_published_segments", "Segments published since the start.", publishing.published)
    yield CounterMetricFamily(
        "bon_log_publish_removed_segments",
        "Local copies of published segments removed since the start.",
        publishing.removed,
    )
    failures = CounterMetricFamily("bon_log_publish_failures", "Failed attempts to publish, by kind.", labels=["kind"])
    for kind in FAILURES:
        failures.add_metric([kind], publishing.failures[kind])
    yield failures
