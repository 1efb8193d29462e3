"""Spans of real calls, as an exporter would get them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bon_server.core.errors import RewardFailed
from bon_server.core.types import Completion, Score
from bon_server.serving.telemetry.tracing import Tracing
from tests.fakes import ScriptedPolicy, ScriptedReward, says
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal
from tests.waiting import SOON_S

CANARY = "canary-of-content"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
ON = {"telemetry.tracing": True}
STAGES = ["bon.queue", "bon.sample", "bon.score", "bon.commit"]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Gets the spans of the servers that a test starts."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(Tracing, "from_environment", lambda: Tracing(provider))
    return exporter


async def canary(index: int) -> Completion:
    return says(f"{CANARY} {index}")


async def traced(running: Running, request: pb.GenerateRequest, flags: str = "01") -> pb.GenerateResponse:
    """Asks as a caller does who traces."""
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-{flags}"),)
    return await running.stub.Generate(request, timeout=SOON_S, metadata=metadata)


def by_name(spans: Sequence[ReadableSpan]) -> dict[str, ReadableSpan]:
    """Each name is there once."""
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


async def test_a_call_continues_the_callers_trace(run: Run, exporter: InMemorySpanExporter) -> None:
    running = await run(ScriptedPolicy(canary), settings=ON)
    fields = {"request_id": "mine", "tags": {"k": CANARY}, "reward_context": {"answer": CANARY}}
    sampling = pb.SamplingParams(seed=0, temperature=0.7, max_tokens=9, stop=[CANARY])
    await traced(running, question(text=CANARY, n=3, sampling=sampling, **fields))
    await running.at_rest()
    spans = by_name(exporter.get_finished_spans())
    assert sorted(spans) == sorted([*STAGES, "bon.v1.BestOfNService/Generate"])
    call = spans["bon.v1.BestOfNService/Generate"]
    assert call.parent is not None and call.context is not None and call.kind is SpanKind.SERVER
    assert (f"{call.parent.trace_id:032x}", f"{call.parent.span_id:016x}") == (TRACE, PARENT)
    assert call.attributes is not None and call.attributes["rpc.grpc.status_code"] == 0
    for name in STAGES:
        stage = spans[name]
        assert stage.parent is not None and stage.parent.span_id == call.context.span_id
        assert stage.start_time is not None and stage.end_time is not None and stage.start_time <= stage.end_time
        assert call.start_time is not None and stage.start_time >= call.start_time - 1_000_000
    sample = spans["bon.sample"].attributes or {}
    assert sample["gen_ai.request.model"] == "scripted" and sample["gen_ai.operation.name"] == "text_completion"
    assert (sample["gen_ai.request.choice.count"], sample["gen_ai.request.temperature"]) == (3, 0.7)
    assert sample["gen_ai.usage.output_tokens"] == 3 * len(f"{CANARY} 0")
    assert sample["gen_ai.response.finish_reasons"] == ("stop",) * 3
    assert (spans["bon.score"].attributes or {})["bon.scored"] == 3
    assert CANARY not in "".join(span.to_json() for span in spans.values())


async def a_bug(text: str) -> Score:
    raise ValueError(f"cannot score {text}")


async def failing(text: str) -> Score:
    raise RewardFailed("the forward pass failed")


@pytest.mark.parametrize("script", [a_bug, failing])
async def test_a_failure_is_an_error_without_its_message(
    run: Run, exporter: InMemorySpanExporter, script: object
) -> None:
    running = await run(ScriptedPolicy(canary), ScriptedReward(script), ON)  # type: ignore[arg-type]
    assert (await refusal(traced(running, question(text=CANARY)))).code is grpc.StatusCode.INTERNAL
    await running.at_rest()
    spans = exporter.get_finished_spans()
    call = by_name(spans)["bon.v1.BestOfNService/Generate"]
    assert call.status.status_code is StatusCode.ERROR
    assert (call.attributes or {})["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert not call.events
    assert CANARY not in "".join(span.to_json() for span in spans)


async def test_streams_scores_and_refusals(run: Run, exporter: InMemorySpanExporter) -> None:
    running = await run(ScriptedPolicy(canary), settings=ON)
    async for _ in running.stub.GenerateStream(pb.GenerateStreamRequest(request=question())):
        pass
    await running.at_rest()
    assert sorted(by_name(exporter.get_finished_spans())) == sorted([*STAGES, "bon.v1.BestOfNService/GenerateStream"])
    exporter.clear()
    await running.stub.Score(pb.ScoreRequest(text="q", completions=["a", "b"]))
    await running.at_rest()
    assert sorted(by_name(exporter.get_finished_spans())) == sorted(
        ["bon.queue", "bon.score", "bon.commit", "bon.v1.BestOfNService/Score"]
    )
    exporter.clear()
    await running.refused(n=0)
    await running.health()
    await running.at_rest()
    (call,) = exporter.get_finished_spans()
    assert (call.attributes or {})["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert call.status.status_code is StatusCode.UNSET, "that is the caller's doing"


async def test_who_does_not_sample_gets_no_spans(run: Run, exporter: InMemorySpanExporter) -> None:
    running = await run(ScriptedPolicy(canary), settings=ON)
    await traced(running, question(), flags="00")
    await running.at_rest()
    assert exporter.get_finished_spans() == ()


def test_it_is_off_and_not_even_imported(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from tests.conftest import synthetic_config
from bon_server.serving.lifecycle.server import Server
from pathlib import Path

async def main():
    server = await Server.start(synthetic_config(Path({str(tmp_path / "log")!r})))
    await server.drain(0)
    await server.stop()
    assert server.attempts.on_stages is None

asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_the_environment_says_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "answers")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = Tracing.from_environment()
    attributes = tracing._provider.resource.attributes
    assert (attributes["service.name"], "service.version" in attributes) == ("answers", True)
    tracing.close()
