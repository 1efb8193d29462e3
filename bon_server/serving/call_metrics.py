"""Calls: begun, ended by code, how long they took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from bon_server.serving.distribution import Distribution

METHODS = ("Generate", "GenerateStream", "Score", "RecordFeedback", "GetServerInfo")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class CallMetrics(Collector):
    """Label values are the names of our methods and of gRPC's codes, whatever callers send."""

    def __init__(self) -> None:
        self._started = dict.fromkeys(METHODS, 0)
        self._ended = Counter({(method, "OK"): 0 for method in METHODS})  # a rate needs to see the 0 before the 1
        self._seconds = {method: Distribution(SECONDS) for method in METHODS}

    def started(self, method: str) -> None:
        """A call has come to its handler."""
        self._started[method] += 1

    def ended(self, method: str, code: str, seconds: float) -> None:
        """Its handler is done."""
        self._ended[method, code] += 1
        self._seconds[method].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        started = CounterMetricFamily("bon_requests_started", "Calls that came to a handler.", labels=["method"])
        for method, count in self._started.items():
            started.add_metric([method], count)
        yield started
        ended = CounterMetricFamily(
            "bon_requests", "Calls that ended, by method and gRPC code.", labels=["method", "code"]
        )
        for labels, count in list(self._ended.items()):
            ended.add_metric(labels, count)
        yield ended
        seconds = HistogramMetricFamily("bon_request_seconds", "Wall time of calls.", labels=["method"])
        for method, taken in self._seconds.items():
            seconds.add_metric([method], taken.buckets, taken.sum)
        yield seconds
