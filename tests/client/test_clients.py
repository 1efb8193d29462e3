"""Both clients over real gRPC: answers, retries, deadlines, cancellation."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, closing
from uuid import UUID

import bon
import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from tests.client.fake_server import FakeService, Refusal, serving
from tests.waiting import SOON_S

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_async_generate(service: FakeService, target: str) -> None:
    async with bon.AsyncClient(target) as client:
        answer = await client.generate("hello", n=4, view="all")
    assert answer.n_scored == len(answer.candidates) == 4
    assert answer.best.reward == max(candidate.reward for candidate in answer.candidates)
    assert UUID(answer.request_id)


async def test_blocking_generate(service: FakeService, target: str) -> None:
    def call() -> pb.GenerateResponse:
        with bon.Client(target) as client:
            return client.generate("hello", n=2, request_id="mine")

    assert (await asyncio.to_thread(call)).request_id == "mine"


async def test_unavailable_is_retried_after_its_pushback_with_the_same_id(service: FakeService, target: str) -> None:
    service.refusals.append(Refusal(UNAVAILABLE, pushback_ms=300))
    began_s = time.monotonic()
    async with bon.AsyncClient(target) as client:
        answer = await client.generate("hello")
    assert time.monotonic() - began_s >= 0.3
    assert [request.request_id for request in service.requests] == [answer.request_id] * 2


async def test_blocking_client_retries_too(service: FakeService, target: str) -> None:
    service.refusals.append(Refusal(UNAVAILABLE, pushback_ms=1))

    def call() -> None:
        with bon.Client(target) as client:
            client.generate("hello")

    await asyncio.to_thread(call)
    assert len({request.request_id for request in service.requests}) == 1
    assert len(service.requests) == 2


async def test_attempts_are_bounded(service: FakeService, target: str) -> None:
    service.refusals.extend([Refusal(UNAVAILABLE, pushback_ms=1)] * 9)
    async with bon.AsyncClient(target, attempts=3) as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.generate("hello")
    assert len(service.requests) == 3


async def test_one_attempt_means_no_retry(service: FakeService, target: str) -> None:
    service.refusals.append(Refusal(UNAVAILABLE, pushback_ms=1))
    async with bon.AsyncClient(target, attempts=1) as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.generate("hello")
    assert len(service.requests) == 1


async def test_a_server_that_says_not_to_is_not_retried(service: FakeService, target: str) -> None:
    service.refusals.append(Refusal(UNAVAILABLE, pushback_ms=-1))
    async with bon.AsyncClient(target) as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.generate("hello")
    assert len(service.requests) == 1


@pytest.mark.parametrize("name", ["INTERNAL", "ABORTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNKNOWN"])
async def test_nothing_else_is_retried(service: FakeService, target: str, name: str) -> None:
    code = grpc.StatusCode[name]
    service.refusals.append(Refusal(code, pushback_ms=1))
    async with bon.AsyncClient(target) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate("hello")
    assert caught.value.code() is code
    assert len(service.requests) == 1


async def test_long_requests_are_retried_as_well(service: FakeService, target: str) -> None:
    """gRPC forgets the retries of a request that its retry buffer (256 KiB by default) cannot hold."""
    service.refusals.append(Refusal(UNAVAILABLE, pushback_ms=1))
    async with bon.AsyncClient(target) as client:
        await client.generate("x" * 1_000_000)
    assert len(service.requests) == 2


async def test_deadline_of_the_call_and_of_the_client(service: FakeService, target: str) -> None:
    service.delay_s = 5.0
    async with bon.AsyncClient(target, timeout=0.2) as client:
        for call in (client.generate("hello"), client.generate("hello", timeout=0.1)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(service.cancelled.wait(), 2)


async def test_no_deadline_wins_over_the_client_s(service: FakeService, target: str) -> None:
    service.delay_s = 0.4
    async with bon.AsyncClient(target, timeout=0.1) as client:
        assert (await client.generate("hello", timeout=None)).best.text


async def test_stream_ends_with_the_answer(service: FakeService, target: str) -> None:
    async with bon.AsyncClient(target) as client:
        events = [event async for event in client.generate_stream("hello", n=3)]
    assert [event.WhichOneof("event") for event in events] == ["candidate"] * 3 + ["final"]


async def test_leaving_a_stream_cancels_it_at_the_server(service: FakeService, target: str) -> None:
    service.delay_s = 60.0
    async with bon.AsyncClient(target) as client:
        async with aclosing(client.generate_stream("hello", n=3)) as events:
            async for event in events:
                assert event.candidate.text
                break
        await asyncio.wait_for(service.cancelled.wait(), SOON_S)


async def test_leaving_a_blocking_stream_cancels_it_too(service: FakeService, target: str) -> None:
    service.delay_s = 60.0

    def call(client: bon.Client) -> None:
        with closing(client.generate_stream("hello", n=3)) as events:
            assert next(events).candidate.text

    with bon.Client(target) as client:
        await asyncio.to_thread(call, client)
        await asyncio.wait_for(service.cancelled.wait(), 2)


async def test_cancelling_a_call_cancels_it_at_the_server(service: FakeService, target: str) -> None:
    service.delay_s = 60.0
    async with bon.AsyncClient(target) as client:
        call = asyncio.create_task(client.generate("hello"))
        await service.has_seen(requests=1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(service.cancelled.wait(), 2)


async def test_api_key_goes_with_every_call(service: FakeService, target: str) -> None:
    async with bon.AsyncClient(target, api_key="secret") as client:
        await client.generate("hello")
    assert service.metadata[0]["authorization"] == "Bearer secret"


async def test_score_feedback_and_info(service: FakeService, target: str) -> None:
    async with bon.AsyncClient(target) as client:
        scored = await client.score("hello", ["a", "bb"], reward_context={"answer": "a"})
        feedback = await client.record_feedback("r1", "rating", 0.5, candidate_index=0)
        info = await client.server_info()
    assert [candidate.reward for candidate in scored.candidates] == [1.0, 2.0]
    assert service.scores[0].reward_context == {"answer": "a"}
    assert service.feedback[0].HasField("candidate_index")
    assert UUID(feedback.feedback_id)
    assert info.version == "fake"


async def test_blocking_score_feedback_stream_and_info(service: FakeService, target: str) -> None:
    def calls() -> tuple[pb.ScoreResponse, int, str]:
        with bon.Client(target) as client:
            client.record_feedback("r1", "good", True)
            events = len(list(client.generate_stream("hello", n=2)))
            return client.score(bon.Text("hello"), ["a"]), events, client.server_info().version

    scored, events, version = await asyncio.to_thread(calls)
    assert (scored.candidates[0].reward, events, version) == (1.0, 3, "fake")
    assert service.feedback[0].bool_value


async def test_a_server_that_restarts_is_found_again(service: FakeService) -> None:
    async with serving(service) as port:
        client = bon.AsyncClient(f"127.0.0.1:{port}", attempts=5)
        await client.generate("hello")
    call = asyncio.create_task(client.generate("again"))
    await asyncio.sleep(0.3)
    async with serving(service, port):
        assert (await call).best.text.startswith("again")
        await client.close()


def test_attempts_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="attempts is 6; allowed: 1 to 5"):
        bon.Client(attempts=6)
