"""vLLM's metrics in a registry of our own. Imports vLLM, so import this only beside an engine."""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.perf import PerfMetricsProm
from vllm.v1.spec_decode.metrics import SpecDecodingProm

from bon_server.system.telemetry import Telemetry


def stat_logger(telemetry: Telemetry, metrics: bool) -> type[PrometheusStatLogger]:
    """A class, as the engine's `stat_loggers` take it: it tells `telemetry` of each step.

    metrics: whether it also makes vLLM's metrics, in the registry of `telemetry`; else there are none.
    """
    return _with_metrics(telemetry) if metrics else _steps_only(telemetry)


def _steps_only(telemetry: Telemetry) -> type[PrometheusStatLogger]:
    class StepsOnly(PrometheusStatLogger):  # type: ignore[misc]
        """Of this kind, because vLLM would otherwise add one of its own beside it."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            """Makes no metrics."""

        def record(self, *arguments: Any, **options: Any) -> None:
            """Called after each step."""
            telemetry.stepped()

        def record_admission_rejection(self, reason: str) -> None:
            """Not kept."""

        def record_sleep_state(self, *arguments: Any, **options: Any) -> None:
            """Not kept."""

        def log_engine_initialized(self) -> None:
            """Not kept."""

    return StepsOnly


def _with_metrics(telemetry: Telemetry) -> type[PrometheusStatLogger]:
    gauge, counter, histogram = (
        staticmethod(partial(kind, registry=telemetry.registry)) for kind in (Gauge, Counter, Histogram)
    )

    class OwnRegistry(PrometheusStatLogger):  # type: ignore[misc]
        _gauge_cls, _counter_cls, _histogram_cls = gauge, counter, histogram
        # These make theirs by themselves.
        _perf_metrics_cls = type("OwnPerfMetrics", (PerfMetricsProm,), {"_counter_cls": counter})
        _spec_decoding_cls = type("OwnSpecDecoding", (SpecDecodingProm,), {"_counter_cls": counter})

        def record(self, *arguments: Any, **options: Any) -> None:
            """Called after each step."""
            telemetry.stepped()
            super().record(*arguments, **options)

    return OwnRegistry
