"""Going down in order, and saying no in time when there is no room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bon_server.serving.service import SERVICE
from bon_server.types import Completion, FinishReason, Outcome
from tests.fakes import PARTIAL, ScriptedPolicy, ScriptedReward, says
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal
from tests.waiting import SOON_S, forever, until


class Gate:
    """Samples that wait until the test lets them go."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.policy = ScriptedPolicy(self._sample)

    async def _sample(self, index: int) -> Completion:
        await self.open.wait()
        return says(f"answer {index}")


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """Closed at first."""
    gate = Gate()
    yield gate
    gate.open.set()


async def test_running_calls_finish_and_new_ones_are_refused(run: Run, gate: Gate) -> None:
    running = await run(gate.policy)
    assert [await running.health(service) for service in ("", SERVICE)] == ["SERVING"] * 2
    call = running.stub.Generate(question(request_id="a"))
    stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(request_id="b")))
    await until(lambda: gate.policy.running == 8)
    draining = asyncio.create_task(running.server.drain(SOON_S))
    await until(lambda: running.server.attempts._refusal is not None)
    assert [await running.health(service) for service in ("", SERVICE)] == ["NOT_SERVING"] * 2
    refused = await running.refused(request_id="c")
    assert (refused.code, refused.pushback_ms) == (grpc.StatusCode.UNAVAILABLE, 1000)
    scoring = pb.ScoreRequest(text="question", completions=["x"])
    assert (await refusal(running.stub.Score(scoring))).code is grpc.StatusCode.UNAVAILABLE
    assert not draining.done()
    gate.open.set()
    assert (await call).n_scored == 4
    assert [event async for event in stream][-1].final.n_scored == 4
    await draining
    assert sorted(record.request_id for record in running.records()) == ["a", "b"]


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


async def test_when_the_grace_is_over_the_rest_is_stopped_and_logged(run: Run, gate: Gate) -> None:
    running = await run(gate.policy, ScriptedReward())
    call = running.stub.Generate(question(request_id="a"))
    await until(lambda: gate.policy.running == 4)
    await running.server.drain(0.05)
    refused = await refusal(call)
    assert (refused.code, refused.pushback_ms) == (grpc.StatusCode.UNAVAILABLE, 1000)
    record = running.record("a")
    assert (record.outcome, record.error) == (Outcome.FAILED, "Unavailable")
    assert [candidate.text for candidate in record.candidates] == [PARTIAL] * 4


async def test_also_those_in_the_queue(run: Run, gate: Gate) -> None:
    running = await run(
        gate.policy, settings={"limits.max_candidates_in_flight": 4, "limits.max_n": 4, "defaults.n": 4}
    )
    calls = [running.stub.Generate(question(request_id=f"r{i}")) for i in range(3)]
    await until(lambda: running.admission.queued == 8)
    await running.server.drain(0.05)
    codes = [(await refusal(call)).code for call in calls]
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 3
    assert len(gate.policy.started) == 4
    assert [record.request_id for record in running.records()] == ["r0"]


async def test_stopping_an_idle_server_takes_no_time(run: Run) -> None:
    running = await run()
    await running.ask()
    began = time.monotonic()
    await running.server.drain(SOON_S)
    assert time.monotonic() - began < 0.5


async def test_answers_that_are_ready_still_leave(run: Run, gate: Gate) -> None:
    running = await run(gate.policy)
    call = running.stub.Generate(question(request_id="a"))
    await until(lambda: gate.policy.running == 4)
    draining = asyncio.create_task(running.server.drain(SOON_S))
    gate.open.set()
    await draining
    await running.server.stop()
    assert (await call).n_scored == 4


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


async def test_stopping_twice_does_no_harm(run: Run) -> None:
    running = await run()
    await running.server.drain(0)
    await running.server.stop()
    await running.server.stop()


# No room

FOUR_AND_FOUR = {
    "limits.max_candidates_in_flight": 4,
    "limits.max_candidates_queued": 4,
    "limits.max_queue_share": 1.0,
    "limits.max_n": 4,
    "defaults.n": 4,
    "limits.retry_after_ms": 250,
}


async def test_a_full_server_refuses_at_once(run: Run, gate: Gate) -> None:
    running = await run(gate.policy, settings=FOUR_AND_FOUR)
    calls = [running.stub.Generate(question(request_id=f"r{i}")) for i in range(2)]
    await until(lambda: running.admission.queued == 4)
    began = time.monotonic()
    for attempt in range(10):
        refused = await running.refused(request_id=f"refused-{attempt}", n=1)
        assert (refused.code, refused.pushback_ms) == (grpc.StatusCode.UNAVAILABLE, 250)
    assert time.monotonic() - began < SOON_S / 2
    assert len(gate.policy.started) == 4
    gate.open.set()
    await asyncio.gather(*calls)
    assert sorted(record.request_id for record in running.records()) == ["r0", "r1"]
    assert (await running.ask(request_id="refused-0", n=1)).n_scored == 1


async def test_a_full_server_does_not_tokenise_what_it_refuses_and_still_replays(run: Run, gate: Gate) -> None:
    tokenised: list[None] = []

    async def count() -> None:
        tokenised.append(None)

    gate.policy.prepare = count
    running = await run(gate.policy, settings=FOUR_AND_FOUR)
    gate.open.set()
    stored = await running.ask(request_id="stored")
    gate.open.clear()
    calls = [running.stub.Generate(question(request_id=f"r{i}")) for i in range(2)]
    await until(lambda: running.admission.queued == 4)
    assert len(tokenised) == 3
    assert (await running.refused(request_id="refused")).code is grpc.StatusCode.UNAVAILABLE
    score = pb.ScoreRequest(tokens=pb.Tokens(ids=[65]), completions=["x"])
    assert (await refusal(running.stub.Score(score))).code is grpc.StatusCode.UNAVAILABLE
    assert len(tokenised) == 3
    again = await running.ask(request_id="stored")
    assert again.replayed and again.best == stored.best
    gate.open.set()
    await asyncio.gather(*calls)


async def test_more_than_anybody_may_ask_for_is_no_question_of_room(run: Run) -> None:
    running = await run(settings=FOUR_AND_FOUR)
    refused = await running.refused(n=1_000_000)
    assert (refused.code, list(refused.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["n"])


async def test_one_connection_does_not_take_the_queue_from_another(run: Run, gate: Gate) -> None:
    running = await run(gate.policy, settings={**FOUR_AND_FOUR, "limits.max_queue_share": 0.5})
    calls = [running.stub.Generate(question(n=4))]
    await until(lambda: gate.policy.running == 4)
    calls += [running.stub.Generate(question(n=1)) for _ in range(2)]
    await until(lambda: running.admission.queued == 2)
    refused = await running.refused(n=1)
    assert (refused.code, refused.details) == (grpc.StatusCode.UNAVAILABLE, "this caller has too much waiting")
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(running.server.address, options=options) as channel:
        other = asyncio.create_task(Running(running.server, channel, running.log).ask(n=1))
        await until(lambda: running.admission.queued == 3)
        gate.open.set()
        assert (await other).n_scored == 1
    await asyncio.gather(*calls)


async def test_a_refused_caller_with_a_retry_policy_comes_through(run: Run, gate: Gate) -> None:
    """`grpc-retry-pushback-ms` is honoured by gRPC clients themselves."""
    running = await run(gate.policy, settings=FOUR_AND_FOUR)
    calls = [running.stub.Generate(question(request_id=f"r{i}")) for i in range(2)]
    await until(lambda: running.admission.queued == 4)
    retrying = (
        '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "30s",'
        ' "maxBackoff": "30s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}'
    )
    options = (("grpc.service_config", retrying),)
    async with grpc.aio.insecure_channel(running.server.address, options=options) as channel:
        patient = Running(running.server, channel, running.log)
        waiting = asyncio.create_task(patient.ask(request_id="patient"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        gate.open.set()
        assert (await waiting).n_scored == 4, "long before the backoff of 30 s"
    await asyncio.gather(*calls)


async def test_room_is_counted_in_candidates(run: Run) -> None:
    async def hang(index: int) -> Completion:
        await forever()
        raise AssertionError

    policy = ScriptedPolicy(hang)
    running = await run(policy, settings=FOUR_AND_FOUR)
    calls = [running.stub.Generate(question(n=1)) for _ in range(8)]
    await until(lambda: policy.running == 4 and running.admission.queued == 4)
    assert (await running.refused(n=1)).code is grpc.StatusCode.UNAVAILABLE
    for call in calls:
        call.cancel()
