"""The log's state as Prometheus sees it, read from the spool when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from bon_server.log.spool import Spool
from bon_server.types import Durability

SYNC_CAUSES = ("commit", "checkpoint", "background")


class LogCollector(Collector):
    """To be registered beside the metrics that count."""

    def __init__(self, spool: Spool, durability: Durability) -> None:
        self._spool = spool
        self._durability = durability

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
