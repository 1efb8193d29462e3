"""Going down in order: what the fault catalogue (tests/faults) cannot see."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bon_server.core.types import Completion, FinishReason
from bon_server.serving.rpc.service import SERVICE
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.running import question
from tests.waiting import SOON_S, until


async def test_health_changes_before_calls_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await run()
    order: list[str] = []
    watching: grpc.aio.UnaryStreamCall[object, object] = health_pb2_grpc.HealthStub(running.channel).Watch(  # type: ignore[attr-defined]
        health_pb2.HealthCheckRequest(service=SERVICE)
    )
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING  # type: ignore[attr-defined]
    refuse = running.server.attempts.refuse_new

    def note(refusal: object) -> None:
        order.append("refuse")
        refuse(refusal)  # type: ignore[arg-type]

    monkeypatch.setattr(running.server.attempts, "refuse_new", note)
    health_set = running.server._health._servicer.set

    async def note_health(service: str, status: object) -> None:
        order.append("health")
        await health_set(service, status)  # type: ignore[arg-type]

    monkeypatch.setattr(running.server._health._servicer, "set", note_health)
    await running.server.drain(1)
    assert order == ["health", "health", "refuse"]
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING  # type: ignore[attr-defined]
    watching.cancel()


async def test_also_those_that_are_read_slowly(run: Run) -> None:
    async def long(index: int) -> Completion:
        return Completion(f"{index}" * 3_000_000, (), FinishReason.STOP)

    running = await run(ScriptedPolicy(long))
    request = pb.GenerateStreamRequest(request=question(request_id="a", view=pb.CANDIDATE_VIEW_WINNER))
    stream = running.stub.GenerateStream(request)
    await until(lambda: running.records() != [])
    await running.server.drain(SOON_S)
    stopping = asyncio.create_task(running.server.stop())
    await asyncio.sleep(0.5)
    events = [event async for event in stream]
    assert events[-1].final.n_scored == 4
    await stopping
