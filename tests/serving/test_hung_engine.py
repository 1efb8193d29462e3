"""The real engine under the whole server, as processes: killed, and stopped so that it lives and does nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bon_server.log.read.reader import LogReader
from tests.serving.processes import START_S, Serve, engines
from tests.serving.running import refusal
from tests.waiting import until

pytestmark = [pytest.mark.models, pytest.mark.long]

ENDLESS = pb.GenerateRequest(
    request_id="a",
    tokens=pb.Tokens(ids=[28, 28]),
    n=4,
    sampling=pb.SamplingParams(temperature=0.01, max_tokens=2000),
)
"""Goes on for more than a thousand tokens."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started = Serve(tmp_path)
    yield started
    started.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_callers_are_told_and_the_server_ends(serve: Serve, tmp_path: Path, number: signal.Signals) -> None:
    from tests import tiny_models

    policy = tiny_models.save_policy(tmp_path / "policy")
    server = await asyncio.to_thread(serve, str(policy), "--set", "limits.engine_stall_s=3")
    (engine,) = engines(server.process.pid)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub, health = BestOfNServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        watching = health.Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = stub.Generate(ENDLESS, timeout=START_S)
        await asyncio.sleep(0.3)
        os.kill(engine, number)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE
        assert await server.end() == 1
    await until(lambda: not Path(f"/proc/{engine}").exists())
    with LogReader(server.log) as log:
        assert [(record.request_id, record.outcome.value) for record in log.records()] == [("a", "failed")]
