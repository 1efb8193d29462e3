"""Traces by OpenTelemetry, for who asks for them; this is the only file that imports it.

    the call          continues the caller's `traceparent`
    ├── bon.queue     waiting for a permit
    ├── bon.sample    from the permit to the last sampled token; attributes of the GenAI conventions
    ├── bon.score     from the first completion to the last score: overlaps with the one before
    └── bon.commit    to the acknowledgement of the log

The stages are told when they are over, so a request that ends before it has a permit has the first span only. No span
holds content: neither prompts, completions and stop strings nor tags, nor the texts of exceptions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from bon_server import __version__
from bon_server.core.errors import StartupError
from bon_server.core.types import Sampling
from bon_server.log.record import Record

Attributes = dict[str, AttributeValue]
Handler = Any
"""A grpc.RpcMethodHandler, which is generic in the stubs only."""
Continue = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
CONTEXT_HEADERS = ("traceparent", "tracestate")
CODES = {code.value[0]: code for code in grpc.StatusCode}
SERVER_ERRORS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that make a server's span an error, by the conventions for gRPC; others are the caller's doing."""


class Tracing:
    """Where spans go."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self.tracer = provider.get_tracer("bon", __version__)

    @classmethod
    def from_environment(cls) -> Tracing:
        """To where the OTEL_ variables say, by OTLP over HTTP. Raises `StartupError`: the exporter is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise StartupError("tracing needs an exporter: install bon-server with its extra [tracing]") from None
        ours = Resource({"service.name": "bon", "service.version": __version__})
        provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def close(self) -> None:
        """Sends what is left. Blocks."""
        self._provider.shutdown()

    def stages(self, record: Record, began_ns: int, log_began_ns: int, ended_ns: int) -> None:
        """An attempt is logged; called in its task. Times are those of `time.monotonic_ns`."""
        if not trace.get_current_span().get_span_context().trace_flags.sampled:
            return
        epoch_ns = time.time_ns() - time.monotonic_ns()
        began_ns, times = began_ns + epoch_ns, record.timings
        permit_ns = began_ns + times.queue
        self._span("bon.queue", began_ns, permit_ns, {"bon.n": record.n})
        if record.sampling is not None:
            self._span("bon.sample", permit_ns, permit_ns + times.sample, _sampled(record, record.sampling))
        ends = [one.scored_ns for one in record.candidates if one.scored_ns is not None]
        if ends:
            starts = [one.sampled_ns for one in record.candidates if one.sampled_ns is not None]
            first_ns = permit_ns if record.sampling is None else began_ns + min(starts, default=times.queue)
            self._span("bon.score", first_ns, began_ns + max(ends), _scored(record))
        self._span("bon.commit", log_began_ns + epoch_ns, ended_ns + epoch_ns, {"bon.outcome": record.outcome.value})

    def _span(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        self.tracer.start_span(name, attributes=attributes, start_time=start_ns).end(end_ns)


class TracedCalls(grpc.aio.ServerInterceptor):
    """Puts each call of a service into a span."""

    def __init__(self, tracing: Tracing, service: str) -> None:
        self._tracer = tracing.tracer
        self._service = service
        self._propagator = TraceContextTextMapPropagator()

    async def intercept_service(self, continuation: Continue, details: grpc.HandlerCallDetails) -> Handler:
        """As gRPC calls it."""
        handler = await continuation(details)
        service, _, method = details.method.removeprefix("/").partition("/")
        inner: Any = handler and (handler.unary_unary or handler.unary_stream)  # as `Receiving` reads the message
        if handler is None or inner is None or service != self._service:
            return handler
        headers = {key: str(value) for key, value in details.invocation_metadata if key in CONTEXT_HEADERS}
        parent = self._propagator.extract(headers)
        attributes: Attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}

        async def traced(message: object, context: Any) -> Any:
            with self._tracer.start_as_current_span(
                f"{service}/{method}",
                parent,
                SpanKind.SERVER,
                attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    return await inner(message, context)
                except asyncio.CancelledError:
                    _end(span, grpc.StatusCode.CANCELLED)
                    raise
                finally:
                    _end(span, context.code())

        kind = "unary_unary" if handler.unary_unary else "unary_stream"
        return handler._replace(**{kind: traced})


def _end(span: Span, code: grpc.StatusCode | int | None) -> None:
    """Says how the call ended; the first word counts."""
    attributes = getattr(span, "attributes", None) or {}
    if "rpc.grpc.status_code" in attributes:
        return
    known = code if isinstance(code, grpc.StatusCode) else CODES[code or 0]
    span.set_attribute("rpc.grpc.status_code", known.value[0])
    if known.name in SERVER_ERRORS:
        span.set_status(Status(StatusCode.ERROR, known.name))


def _sampled(record: Record, sampling: Sampling) -> Attributes:
    """By the semantic conventions for generative AI."""
    attributes: Attributes = {
        "gen_ai.operation.name": "text_completion" if record.prompt_messages is None else "chat",
        "gen_ai.provider.name": "bon",
        "gen_ai.request.choice.count": record.n,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.response.id": record.request_id,
        "gen_ai.response.finish_reasons": [
            "none" if one.finish_reason is None else one.finish_reason.value for one in record.candidates
        ],
        "gen_ai.usage.input_tokens": len(record.prompt_token_ids or ()),
        "gen_ai.usage.output_tokens": sum(one.completion_tokens for one in record.candidates),
    }
    if record.policy is not None:
        attributes["gen_ai.request.model"] = record.policy.id
        attributes["gen_ai.response.model"] = f"{record.policy.id}@{record.policy.revision}"
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    if sampling.top_k > 0:
        attributes["gen_ai.request.top_k"] = sampling.top_k
    return attributes


def _scored(record: Record) -> Attributes:
    return {
        "bon.reward_models": [f"{ref.id}@{ref.revision}" for ref in record.reward_models],
        "bon.reward_model_tokens": record.reward_model_tokens,
        "bon.scored": sum(one.reward is not None for one in record.candidates),
        "bon.overlap_ratio": record.timings.overlap_ratio,
        "bon.selection_reason": "none" if record.selection_reason is None else record.selection_reason.value,
    }
