"""Callers who leave: what was scored is in the log, and nothing else runs on."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub

from bon_server.types import CandidateStatus, Completion, FinishReason, Outcome, Score
from tests.fakes import PARTIAL, ScriptedPolicy, ScriptedReward, says, scored
from tests.serving.conftest import Run
from tests.serving.running import Running, open_files, question
from tests.waiting import forever, until


async def first_two_answer(index: int) -> Completion:
    """The others are sampled for ever."""
    if index > 1:
        await forever()
    return says(f"answer {index}")


async def only_zero(text: str) -> Score:
    """The others are scored for ever."""
    if text != "answer 0":
        await forever()
    return scored(1.0)


def long(index: int) -> Completion:
    """More than gRPC sends to somebody who does not read."""
    return Completion(f"{index}" * 3_000_000, (), FinishReason.STOP)


def statuses(running: Running, request_id: str) -> list[str]:
    """Of the logged candidates, in index order."""
    return [candidate.status.value for candidate in running.record(request_id).candidates]


async def test_before_tokenising(run: Run) -> None:
    encoding = asyncio.Event()

    async def encode_forever() -> None:
        encoding.set()
        await forever()

    policy = ScriptedPolicy(prepare=encode_forever)
    running = await run(policy)
    call = running.stub.Generate(question())
    await encoding.wait()
    call.cancel()
    await running.at_rest()
    assert policy.started == []
    assert running.records() == []


async def test_in_the_queue(run: Run) -> None:
    released = asyncio.Event()

    async def wait(index: int) -> Completion:
        await released.wait()
        return says(str(index))

    policy = ScriptedPolicy(wait)
    running = await run(policy, settings={"limits.max_candidates_in_flight": 4, "limits.max_n": 4, "defaults.n": 4})
    first = running.stub.Generate(question(request_id="first"))
    await until(lambda: policy.running == 4)
    second = running.stub.Generate(question(request_id="second"))
    third = running.stub.Generate(question(request_id="third", n=2))
    await until(lambda: running.admission.queued == 6)
    second.cancel()
    await until(lambda: running.admission.queued == 2)
    assert len(policy.started) == 4, "who waits is not sampled"
    released.set()
    await asyncio.gather(first, third)
    assert [record.request_id for record in running.records()] == ["first", "third"]
    assert len(policy.started) == 6


async def test_while_sampling(run: Run) -> None:
    policy, reward_model = ScriptedPolicy(first_two_answer), ScriptedReward()
    running = await run(policy, reward_model)
    call = running.stub.Generate(question(request_id="a"))
    await until(lambda: reward_model.calls.total() == 2 and policy.running == 2)
    call.cancel()
    await running.at_rest()
    record = running.record("a")
    assert (record.outcome, record.selected_index, record.error) == (Outcome.CANCELLED, None, "RequestCancelled")
    assert statuses(running, "a") == ["scored", "scored", "cancelled", "cancelled"]
    assert [candidate.text for candidate in record.candidates] == ["answer 0", "answer 1", PARTIAL, PARTIAL]
    assert record.candidates[0].reward == 8.0


async def test_between_sampling_and_scoring(run: Run) -> None:
    """All sampled, one scored, the others waiting for their score."""
    policy, reward_model = ScriptedPolicy(), ScriptedReward(only_zero)
    running = await run(policy, reward_model)
    call = running.stub.Generate(question(request_id="a"))
    await until(lambda: reward_model.running == 3)
    call.cancel()
    await running.at_rest()
    record = running.record("a")
    assert statuses(running, "a") == ["scored", "cancelled", "cancelled", "cancelled"]
    assert [candidate.text for candidate in record.candidates] == [f"answer {i}" for i in range(4)]
    assert all(candidate.sampled_ns is not None for candidate in record.candidates)


async def test_while_scoring_and_sampling(run: Run) -> None:
    policy, reward_model = ScriptedPolicy(first_two_answer), ScriptedReward(only_zero)
    running = await run(policy, reward_model)
    call = running.stub.Generate(question(request_id="a"))
    await until(lambda: reward_model.running == 1 and policy.running == 2)
    call.cancel()
    await running.at_rest()
    assert statuses(running, "a") == ["scored", "cancelled", "cancelled", "cancelled"]


async def test_while_committing(run: Run) -> None:
    running = await run()
    with running.slow_disk():
        call = running.stub.Generate(question(request_id="a"))
        await until(lambda: running.server.attempts.running == 1)
        await asyncio.sleep(0.05)  # sampling and scoring take less than a millisecond
        call.cancel()
        await asyncio.sleep(0.05)
        assert running.server.attempts.running == 1, "the commit goes on without its caller"
    await running.at_rest()
    assert running.record("a").outcome is Outcome.OK
    assert (await running.ask(request_id="a")).replayed


async def test_after_the_answer(run: Run) -> None:
    running = await run()
    call = running.stub.Generate(question(request_id="a"))
    answer = await call
    call.cancel()
    assert running.record("a").outcome is Outcome.OK
    assert answer.best.status == pb.CANDIDATE_STATUS_SCORED


async def test_a_stream_that_nobody_reads_any_more(run: Run) -> None:
    policy, reward_model = ScriptedPolicy(first_two_answer), ScriptedReward()
    running = await run(policy, reward_model)
    call = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(request_id="a")))
    async for _ in call:
        break
    await until(lambda: reward_model.calls.total() == 2)
    call.cancel()
    await running.at_rest()
    assert statuses(running, "a") == ["scored", "scored", "cancelled", "cancelled"]


async def test_a_stream_that_was_never_read(run: Run) -> None:
    """The server is held up by flow control in the middle of sending when the caller leaves."""

    async def long_or_never(index: int) -> Completion:
        if index == 3:
            await forever()
        return long(index)

    running = await run(ScriptedPolicy(long_or_never))
    call = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(request_id="a")))
    await until(lambda: running.server.attempts.running == 1)
    await asyncio.sleep(0.2)
    call.cancel()
    await running.at_rest()
    assert statuses(running, "a") == ["scored", "scored", "scored", "cancelled"]
    assert (await running.metrics())['bon_requests_total{code="CANCELLED",method="GenerateStream"}'] == 1


async def test_a_stream_that_was_never_read_and_has_failed_since(run: Run) -> None:
    """The failure finds nobody; it must not end up with the event loop, which would print it."""
    failed = asyncio.Event()

    async def long_or_failing(index: int) -> Completion:
        if index == 3:
            await failed.wait()
            raise ZeroDivisionError("canary")
        return long(index)

    running = await run(ScriptedPolicy(long_or_failing))
    call = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(request_id="a")))
    await until(lambda: running.server.attempts.running == 1)
    await asyncio.sleep(0.2)
    failed.set()
    await until(lambda: running.server.attempts.running == 0)
    call.cancel()
    await running.at_rest()
    assert running.record("a").error == "InternalError"


async def test_a_connection_that_breaks(run: Run) -> None:
    policy = ScriptedPolicy(first_two_answer)
    running = await run(policy)
    async with grpc.aio.insecure_channel(running.server.address) as other:
        call = BestOfNServiceStub(other).Generate(question(request_id="a"))
        await until(lambda: policy.running == 2)
    assert call.done()
    await running.at_rest()
    assert running.record("a").outcome is Outcome.CANCELLED


async def test_a_cancelled_request_may_be_tried_again(run: Run) -> None:
    policy = ScriptedPolicy(first_two_answer)
    running = await run(policy)
    call = running.stub.Generate(question(request_id="a"))
    await until(lambda: policy.running == 2)
    call.cancel()
    await running.at_rest()
    policy.script = ScriptedPolicy().script
    answer = await running.ask(request_id="a")
    assert (answer.replayed, answer.n_scored) == (False, 4)
    assert [(record.attempt, record.outcome) for record in running.records()] == [
        (1, Outcome.CANCELLED),
        (2, Outcome.OK),
    ]


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
async def test_many_cancels_at_random_moments_leave_no_trace(run: Run, streamed: bool) -> None:
    running = await run(
        settings={
            "policy.model": "synthetic:tokens_per_s=4000,tokens=20",
            "reward.models": ["synthetic:seconds=0.002"],
            "limits.max_candidates_in_flight": 32,
            "limits.max_n": 16,
        }
    )
    await running.ask()
    await running.at_rest()
    descriptors = open_files()
    dice = random.Random(7)

    async def ask_and_leave(number: int) -> None:
        request = question(request_id=f"r{number}", n=dice.randint(1, 16))
        if streamed:
            stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=request))
            reading = asyncio.ensure_future(_read(stream))
            await asyncio.sleep(dice.expovariate(100))
            stream.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        else:
            call = running.stub.Generate(request)
            await asyncio.sleep(dice.expovariate(100))
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    for batch in range(20):
        await asyncio.gather(*(ask_and_leave(10 * batch + i) for i in range(10)))
    await running.at_rest()
    assert open_files() == descriptors
    records = running.records()
    assert {record.outcome for record in records} >= {Outcome.OK, Outcome.CANCELLED}, "the moments were not random"
    for record in records:
        assert [candidate.index for candidate in record.candidates] == list(range(record.n))
        assert record.outcome is Outcome.CANCELLED or all(c.status is CandidateStatus.SCORED for c in record.candidates)
    assert (await running.ask(request_id="last")).n_scored == 4


async def _read(stream: grpc.aio.UnaryStreamCall[pb.GenerateStreamRequest, pb.GenerateStreamResponse]) -> None:
    async for _ in stream:
        pass
