"""A retry is not a second sample: the request id is an idempotency key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import SamplingFailed
from bon_server.core.types import Completion, Outcome
from tests.fakes import ScriptedPolicy, says
from tests.serving.conftest import Run
from tests.serving.running import GENERATE, Running, question, refusal
from tests.waiting import until


def without_call_times(answer: pb.GenerateResponse) -> pb.GenerateResponse:
    """What has to be the same in a replayed answer."""
    copy = pb.GenerateResponse()
    copy.CopyFrom(answer)
    copy.replayed = False
    copy.timings.log_ns = copy.timings.total_ns = 0
    return copy


async def test_the_same_request_gives_the_stored_answer(run: Run) -> None:
    policy = ScriptedPolicy()
    running = await run(policy)
    fields: dict[str, Any] = {
        "request_id": "a",
        "include_token_ids": True,
        "tags": {"k": "v", "a": "b"},
        "reward_context": {"x": "y"},
    }
    first = await running.ask(**fields)
    second = await running.ask(**fields)
    assert (first.replayed, second.replayed) == (False, True)
    assert without_call_times(first) == without_call_times(second)
    assert len(policy.started) == 4
    assert len(running.records()) == 1


async def test_also_after_a_restart(run: Run) -> None:
    running = await run()
    first = await running.ask(request_id="a", sampling=pb.SamplingParams())
    await running.server.drain(1)
    await running.server.stop()
    running = await run()
    again = await running.ask(request_id="a", sampling=pb.SamplingParams())
    assert again.replayed
    assert without_call_times(first) == without_call_times(again)


async def test_an_id_that_the_server_makes_is_not_looked_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await run()
    looked_up: list[str] = []
    monkeypatch.setattr(running.server.spool, "latest", lambda principal, request_id: looked_up.append(request_id))
    made = (await running.ask()).request_id
    await running.ask(request_id="a")
    assert made and looked_up == ["a"]


async def test_and_through_the_stream(run: Run) -> None:
    running = await run()
    first = await running.ask(request_id="a")
    request = pb.GenerateStreamRequest(request=question(request_id="a"))
    events = [event async for event in running.stub.GenerateStream(request)]
    assert without_call_times(events[-1].final) == without_call_times(first)
    assert events[-1].final.replayed


async def test_unknown_fields_make_no_other_request(run: Run) -> None:
    running = await run()
    first = await running.ask(request_id="a")
    newer = question(request_id="a").SerializeToString() + bytes([0x98, 0x06, 0x01])  # field 99, varint 1
    call: Any = running.channel.unary_unary(GENERATE)
    again = pb.GenerateResponse.FromString(await call(newer))
    assert again.replayed and again.best == first.best


async def test_a_stream_s_message_as_a_unary_one_is_refused_without_its_prompt(run: Run) -> None:
    running = await run()
    wrapped = pb.GenerateStreamRequest(request=question(text="what nobody may read"))
    refused = await running.refused_bytes(GENERATE, wrapped.SerializeToString())
    assert "request_id" in refused.violations
    assert "nobody" not in refused.everything_said


CHANGES: dict[str, Callable[[pb.GenerateRequest], object]] = {
    "prompt": lambda request: setattr(request, "text", "another"),
    "form of the prompt": lambda request: request.chat.messages.add(role="user", content="question"),
    "n": lambda request: setattr(request, "n", 5),
    "sampling": lambda request: setattr(request.sampling, "temperature", 0.5),
    "seed": lambda request: setattr(request.sampling, "seed", 1),
    "context": lambda request: request.reward_context.update({"k": "v"}),
    "tags": lambda request: request.tags.update({"k": "v"}),
    "view": lambda request: setattr(request, "view", pb.CANDIDATE_VIEW_WINNER),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_another_request_is_refused(run: Run, change: Callable[[pb.GenerateRequest], object]) -> None:
    running = await run()
    await running.ask(request_id="a")
    other = question(request_id="a")
    change(other)
    refused = await refusal(running.stub.Generate(other))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert len(running.records()) == 1


async def test_generate_and_score_share_the_ids(run: Run) -> None:
    running = await run()
    await running.stub.Score(pb.ScoreRequest(request_id="a", text="question", completions=["x"]))
    assert (await running.refused(request_id="a")).code is grpc.StatusCode.ALREADY_EXISTS
    again = await running.stub.Score(pb.ScoreRequest(request_id="a", text="question", completions=["x"]))
    assert again.replayed


async def test_without_an_id_every_call_is_its_own(run: Run) -> None:
    running = await run()
    first, second = await running.ask(), await running.ask()
    assert first.request_id and second.request_id and first.request_id != second.request_id
    assert not second.replayed


async def test_still_running(run: Run) -> None:
    released = asyncio.Event()

    async def wait(index: int) -> Completion:
        await released.wait()
        return says(str(index))

    policy = ScriptedPolicy(wait)
    running = await run(policy)
    first = running.stub.Generate(question(request_id="a"))
    await until(lambda: policy.running == 4)
    assert (await running.refused(request_id="a")).code is grpc.StatusCode.ABORTED
    assert (await running.refused(request_id="a", text="another")).code is grpc.StatusCode.ABORTED
    released.set()
    assert not (await first).replayed
    assert (await running.ask(request_id="a")).replayed
    assert len(policy.started) == 4


async def test_a_thousand_at_once_sample_once(run: Run) -> None:
    policy = ScriptedPolicy()
    running = await run(policy)
    answers = await asyncio.gather(*(running.ask(request_id="a") for _ in range(100)), return_exceptions=True)
    fresh = [a for a in answers if isinstance(a, pb.GenerateResponse) and not a.replayed]
    codes = {answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)}
    assert len(fresh) == 1 and len(policy.started) == 4
    assert codes <= {grpc.StatusCode.ABORTED}


async def test_a_failed_attempt_may_be_tried_again(run: Run) -> None:
    async def fail(index: int) -> Completion:
        raise SamplingFailed("engine error")

    policy = ScriptedPolicy(fail)
    running = await run(policy)
    assert (await running.refused(request_id="a")).code is grpc.StatusCode.INTERNAL
    assert (await running.refused(request_id="a", text="other")).code is grpc.StatusCode.ALREADY_EXISTS
    policy.script = ScriptedPolicy().script
    assert not (await running.ask(request_id="a")).replayed
    assert (await running.ask(request_id="a")).replayed
    assert [(record.attempt, record.outcome) for record in running.records()] == [(1, Outcome.FAILED), (2, Outcome.OK)]


async def test_the_same_request_of_a_busy_caller(run: Run) -> None:
    """Different ids, one prompt: different records, one prompt hash."""
    running = await run()
    await asyncio.gather(*(running.ask(request_id=f"r{i}") for i in range(20)))
    records = running.records()
    assert sorted(record.request_id for record in records) == sorted(f"r{i}" for i in range(20))
    assert len({record.prompt_hash for record in records}) == 1
    assert [record.ordinal for record in records] == list(range(1, 21))


async def test_an_id_may_be_as_odd_as_allowed(run: Run) -> None:
    running: Running = await run()
    odd = "aZ09._:-" * 16
    assert len(odd) == 128
    assert (await running.ask(request_id=odd)).request_id == odd
