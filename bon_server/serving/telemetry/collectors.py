"""The server's state as it is when Prometheus asks: the log, permits, engines with vLLM's own metrics.

`LoopLag` measures all the time how late the event loop is: what every call waits for when something blocks it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from bon_server.config.settings import LimitsConfig
from bon_server.core.types import Durability
from bon_server.log.publish.publisher import Publisher
from bon_server.log.publish.publishing import Publishing
from bon_server.log.publish.store import FAILURES
from bon_server.log.seal.sealer import Sealer
from bon_server.log.spool.spool import Spool
from bon_server.models.starting import RunningReward, Started
from bon_server.serving.admission.permits import Admission
from bon_server.serving.policies import Policies
from bon_server.system.telemetry import Telemetry

EVERY_S = 0.25


class LoopLag:
    """Asks to be called back, again and again, from its construction to `close`. No task: it holds up nothing."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        """observe: told each time by how many seconds it was too late."""
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._ask()

    def close(self) -> None:
        """Asks no more."""
        self._timer.cancel()

    def _ask(self) -> None:
        self._due_s = self._loop.time() + EVERY_S
        self._timer = self._loop.call_at(self._due_s, self._called)

    def _called(self) -> None:
        late_s = self._loop.time() - self._due_s
        self._ask()  # whatever comes of the next line
        self._observe(max(0.0, late_s))


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


class StateCollector(Collector):
    """To be registered beside the metrics that count."""

    def __init__(
        self, limits: LimitsConfig, admission: Admission, policies: Policies, reward_model: RunningReward
    ) -> None:
        self._limits = limits
        self._admission = admission
        self._policies = policies
        self._reward_model = reward_model

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        limit = self._limits.max_candidates_in_flight
        held = limit - self._admission.free
        yield GaugeMetricFamily("bon_candidates_in_flight", "Candidates that hold a permit.", held)
        yield GaugeMetricFamily("bon_candidates_in_flight_limit", "How many may hold one.", limit)
        yield GaugeMetricFamily(
            "bon_candidates_queued_limit", "How many may wait for one.", self._limits.max_candidates_queued
        )
        models: dict[str, Started] = {"policy": self._policies.current, "reward": self._reward_model}
        up = GaugeMetricFamily("bon_engine_up", "1 while the model can work.", labels=["role"])
        stalled = GaugeMetricFamily(
            "bon_engine_stalled_seconds",
            "Since the model's last step, while there is something to do; of a function, since it had a process.",
            labels=["role"],
        )
        up.add_metric(["policy"], not self._policies.lost)
        up.add_metric(["reward"], self._reward_model.healthy)
        for role, model in models.items():
            if engines := model.engines:
                stalled.add_metric([role], max(engine.stalled_s for engine in engines))
        yield from (up, stalled)
        yield from of_engines({role: model.engines for role, model in models.items()})


def of_engines(engines: dict[str, tuple[Telemetry, ...]]) -> Iterator[Metric]:
    """vLLM's metrics of all engines, each family once, with the label `role`."""
    families: dict[str, Metric] = {}
    for role, of_role in engines.items():
        for engine in of_role:
            _add(families, role, engine.registry)
    yield from families.values()


def _add(families: dict[str, Metric], role: str, registry: CollectorRegistry) -> None:
    for metric in registry.collect():
        family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                family.add_sample(sample.name, {**sample.labels, "role": role}, sample.value)
