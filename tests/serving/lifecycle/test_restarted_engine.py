"""`policy.restarts` with the real engine: killed or stopped, it is there again; killed too often, the server ends."""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bon_server.log.read.reader import LogReader
from tests.serving.conftest import Run
from tests.serving.processes import START_S, Serve, engines
from tests.serving.running import open_files, refusal
from tests.waiting import until

pytestmark = [pytest.mark.models, pytest.mark.long]

PROMPT = pb.Tokens(ids=[28, 28])
SHORT = pb.SamplingParams(temperature=1.0, max_tokens=4)
LONG = pb.SamplingParams(temperature=0.01, max_tokens=800)
"""All of these are sampled."""


PIPES_OF_THE_KILLED = 2
"""Of the process that vLLM had to kill last; those of the one before are closed by then (measured over three)."""


def asking(request_id: str, sampling: pb.SamplingParams = SHORT) -> pb.GenerateRequest:
    """Four candidates."""
    return pb.GenerateRequest(request_id=request_id, tokens=PROMPT, n=4, sampling=sampling)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started = Serve(tmp_path)
    yield started
    started.close()


async def test_killed_once_and_once_too_often(serve: Serve, tmp_path: Path) -> None:
    from tests import tiny_models

    policy = tiny_models.save_policy(tmp_path / "policy")
    server = await asyncio.to_thread(serve, str(policy), "--set", "policy.restarts=1")
    (engine,) = engines(server.process.pid)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub, health = BestOfNServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        watching = health.Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        first = await stub.Generate(asking("first"), timeout=START_S)
        call = stub.Generate(asking("dying", LONG), timeout=START_S)
        await asyncio.sleep(0.3)
        os.kill(engine, signal.SIGKILL)
        assert (await refusal(call)).code is grpc.StatusCode.UNAVAILABLE
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        refused = await refusal(stub.Generate(asking("refused"), timeout=START_S))
        assert refused.code is grpc.StatusCode.UNAVAILABLE and refused.pushback_ms is not None
        replayed = await stub.Generate(asking("first"), timeout=START_S)
        assert replayed.replayed and replayed.best == first.best

        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await stub.Generate(asking("dying", LONG), timeout=START_S)).n_scored == 4
        (second,) = engines(server.process.pid)
        os.kill(second, signal.SIGKILL)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await server.end() == 1
    with LogReader(server.log) as log:
        found = [(record.request_id, record.attempt, record.outcome.value) for record in log.records()]
    assert found == [("first", 1, "ok"), ("dying", 1, "failed"), ("dying", 2, "ok")]


def tasks_by_name() -> Counter[str]:
    """How many tasks run each coroutine."""
    return Counter(str(getattr(task.get_coro(), "__qualname__", "")) for task in asyncio.all_tasks())


@pytest.fixture
def vllm() -> None:
    """Imported late, since it takes seconds, and without the warnings of what it imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bon_server.models.vllm.successor  # noqa: F401


@pytest.mark.usefixtures("vllm")
async def test_stopped_and_everything_as_before(run: Run, tmp_path: Path) -> None:
    from tests import tiny_models

    policy = tiny_models.save_policy(tmp_path / "policy")
    settings = {"policy.model": str(policy), "policy.restarts": 1, "limits.engine_stall_s": 3}
    running = await run(settings=settings)
    revision = (await running.stub.Generate(asking("before"))).policy.revision
    await running.at_rest()
    files, tasks, (engine,) = open_files(), tasks_by_name(), engines(os.getpid())
    hanging = running.stub.Generate(asking("hanging", LONG))
    await asyncio.sleep(0.3)
    os.kill(engine, signal.SIGSTOP)
    assert (await refusal(hanging)).details == "the engine made no progress"
    await running.health_becomes("NOT_SERVING")
    old = running.server.policy
    await until(lambda: running.server.policy is not old, START_S)
    after = await running.stub.Generate(asking("after"), timeout=START_S)
    await running.health_becomes("SERVING")
    assert (after.n_scored, after.policy.revision) == (4, revision)
    await until(lambda: tasks_by_name() == tasks)  # the engine's own are others, and as many
    running.tasks_before = asyncio.all_tasks()
    assert engine not in engines(os.getpid()) and len(engines(os.getpid())) == 1
    metrics = await running.metrics()
    assert metrics['bon_engine_up{role="policy"}'] == 1
    assert metrics['bon_engine_restarts_total{result="started",role="policy"}'] == 1
    assert metrics["bon_attempts_in_flight"] == metrics["bon_candidates_in_flight"] == 0
    assert [value for name, value in metrics.items() if name.startswith("vllm:num_requests_running")] == [0]
    assert open_files() <= files + PIPES_OF_THE_KILLED
    (record,) = (record for record in running.records() if record.request_id == "hanging")
    assert record.outcome.value == "failed" and any(candidate.token_ids for candidate in record.candidates)


@pytest.mark.usefixtures("vllm")
async def test_other_weights_in_the_same_place_are_not_taken(tmp_path: Path) -> None:
    from bon_server.config.settings import PolicyConfig
    from bon_server.core.errors import StartupError
    from bon_server.models.vllm.policy import VllmPolicy
    from bon_server.models.vllm.successor import restart
    from tests import tiny_models

    config = PolicyConfig(model=str(tiny_models.save_policy(tmp_path / "policy")), kv_cache_memory_bytes=64 << 20)
    policy = await VllmPolicy.start(config)
    try:
        tiny_models.save_policy(tmp_path / "policy", chat_template="{{ messages }}")
        with pytest.raises(StartupError, match="chat template has changed"):
            await restart(config, policy)
        assert not policy.healthy
        tiny_models.save_policy(tmp_path / "policy", weights_seed=1)
        with pytest.raises(StartupError, match="its weights have the revision"):
            await restart(config, policy)
    finally:
        await policy.close()
