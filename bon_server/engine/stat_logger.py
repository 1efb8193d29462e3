"""vLLM's metrics in a registry of our own. Imports vLLM, so import this only beside an engine."""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.perf import PerfMetricsProm
from vllm.v1.spec_decode.metrics import SpecDecodingProm

from bon_server.engine.telemetry import Telemetry


def stat_logger(telemetry: Telemetry) -> type[PrometheusStatLogger]:
    """A class, as the engine's `stat_loggers` take it: it makes all its metrics in the registry of `telemetry`."""
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
