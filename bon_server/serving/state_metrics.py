"""Permits and engines as they are when they are looked at, with vLLM's own metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bon_server.config import LimitsConfig
from bon_server.engine.telemetry import Telemetry
from bon_server.serving.admission import Admission
from bon_server.serving.models import RunningReward, Started
from bon_server.serving.policies import Policies


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
