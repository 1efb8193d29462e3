"""Quotas: never more than allowed in any stretch of time, whatever is asked for at once; paid for as used."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from hypothesis import given
from hypothesis import strategies as st

from bon_server.core.errors import QuotaExceeded
from bon_server.core.types import Candidate, CandidateStatus, Completion, Request
from bon_server.serving.admission import quotas as quotas_module
from bon_server.serving.admission.quotas import PERIOD_S, Bucket, Quotas
from bon_server.serving.auth import watched
from bon_server.serving.auth.keys import Quota, add_key, read_keys
from bon_server.serving.auth.watched import Watched
from tests.conftest import StartServer
from tests.fakes import ScriptedPolicy, a_request, says
from tests.serving.conftest import Run
from tests.serving.guarded import Guard, audited, shows
from tests.serving.running import Refused, question, refusal
from tests.waiting import forever, until

FEW = st.integers(1, 20)


@given(per_period=FEW, asks=st.lists(st.tuples(st.floats(0, 30), FEW, st.integers(0, 20)), max_size=60))
def test_no_stretch_of_time_has_more_than_a_full_bucket_and_what_flows_in(
    per_period: int, asks: list[tuple[float, int, int]]
) -> None:
    """Brute force over all stretches between two takings. A part of each is given back, which must not count."""
    bucket, now_s = Bucket(per_period, 0.0), 0.0
    spent: list[tuple[float, int]] = []
    for pause_s, amount, unused in asks:
        now_s += pause_s
        wait_s = bucket.wait_s(amount, per_period, now_s)
        assert math.isinf(wait_s) == (amount > per_period)
        if wait_s == 0:
            unused = min(unused, amount)
            bucket.take(amount)
            bucket.take(-unused)
            spent.append((now_s, amount - unused))
        elif wait_s < math.inf:
            assert bucket.wait_s(amount, per_period, now_s + 0.999 * wait_s) > 0, "not sooner than it says"
            now_s += wait_s * 1.000001
            assert bucket.wait_s(amount, per_period, now_s) == 0, "and then it is there"
    for first in range(len(spent)):
        for last in range(first, len(spent)):
            took = sum(amount for _, amount in spent[first : last + 1])
            seconds = spent[last][0] - spent[first][0]
            assert took <= per_period * (1 + seconds / PERIOD_S) + 1e-6


def of_anna(guard: Guard, **limits: int) -> Quotas:
    """Quotas whose clock stands still."""
    add_key(guard.keys, "anna", ["generate"], Quota(**limits))
    return Quotas(Watched([guard.keys], lambda: read_keys(guard.keys)), lambda: 0.0)


def by_anna(n: int) -> Request:
    """For n candidates of at most 8 tokens."""
    return replace(a_request(n), principal="anna")


def ended(tokens: int) -> Candidate:
    return Candidate(0, CandidateStatus.SCORED if tokens else CandidateStatus.CANCELLED, completion_tokens=tokens)


def test_what_was_not_used_is_given_back(guard: Guard) -> None:
    quotas = of_anna(guard, candidates_per_minute=10, tokens_per_minute=64)
    reserved = quotas.reserve(by_anna(8))  # all tokens
    with pytest.raises(QuotaExceeded) as caught:
        quotas.reserve(by_anna(1))
    assert caught.value.retry_after_ms == math.ceil(8 / 64 * 60_000)
    reserved.used([ended(5), ended(3), ended(0)])
    reserved.settle()
    quotas.reserve(by_anna(7))
    with pytest.raises(QuotaExceeded):
        quotas.reserve(by_anna(2))  # 1 candidate is left


def test_of_two_limits_neither_is_charged_when_one_is_passed(guard: Guard) -> None:
    quotas = of_anna(guard, candidates_per_minute=10, tokens_per_minute=16)
    quotas.reserve(by_anna(1))
    for _ in range(20):
        with pytest.raises(QuotaExceeded):
            quotas.reserve(by_anna(2))
    quotas.reserve(by_anna(1))


def test_what_can_never_be_is_not_to_be_tried_again(guard: Guard) -> None:
    quotas = of_anna(guard, candidates_per_minute=10, tokens_per_minute=64)
    for n, named in ((11, "11 candidates"), (9, "72 tokens")):
        with pytest.raises(QuotaExceeded, match=named) as caught:
            quotas.reserve(by_anna(n))
        assert caught.value.retry_after_ms is None


def test_others_have_no_limit(guard: Guard) -> None:
    quotas = of_anna(guard, candidates_per_minute=1)
    for _ in range(5):
        quotas.reserve(a_request(100)).settle()
    Quotas(None).reserve(by_anna(100))


# Through gRPC


async def asked(running: Any, key: str, n: int = 4, **fields: Any) -> pb.GenerateResponse | Refused:
    """The answer to a question, or how it was refused."""
    call = running.stub.Generate(question(n=n, **fields), metadata=shows(key), timeout=15)
    try:
        answer: pb.GenerateResponse = await call
    except grpc.aio.AioRpcError:
        return await refusal(call)
    return answer


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing flows in."""
    monkeypatch.setattr(quotas_module, "PERIOD_S", 1e9)
    monkeypatch.setattr(watched, "LOOK_S", 0.0)


async def test_a_used_up_quota_is_resource_exhausted_and_says_when(
    run: Run, guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    anna, bob = guard.key("anna", candidates_per_minute=10), guard.key("bob")
    running = await run(settings={"security.api_keys": str(guard.keys)})
    assert isinstance(await asked(running, anna, n=8, request_id="first"), pb.GenerateResponse)
    found = await asked(running, anna, n=8)
    assert isinstance(found, Refused)
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert found.pushback_ms is not None and 0 < found.pushback_ms <= 36_000
    (line,) = audited(caplog.records)
    assert (line["principal"], line["code"]) == ("anna", "RESOURCE_EXHAUSTED")
    assert line["method"] == "/bon.v1.BestOfNService/Generate"
    never = await asked(running, anna, n=11)
    assert isinstance(never, Refused) and never.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert never.pushback_ms is None
    malformed = await asked(running, anna, n=100_000)
    assert isinstance(malformed, Refused) and malformed.code is grpc.StatusCode.INVALID_ARGUMENT
    again = await asked(running, anna, n=8, request_id="first")
    assert isinstance(again, pb.GenerateResponse) and again.replayed, "a stored answer costs nothing"
    assert isinstance(await asked(running, bob, n=8), pb.GenerateResponse), "others have their own"


async def test_callers_pay_for_what_was_sampled(run: Run, guard: Guard, still: None) -> None:
    """Candidates say one token each, of 20 that they may."""

    async def one_token(index: int) -> Completion:
        return says("x")

    key = guard.key("anna", tokens_per_minute=100)
    running = await run(ScriptedPolicy(one_token), settings={"security.api_keys": str(guard.keys)})
    paid = 0
    for _ in range(4):
        answer = await asked(running, key, n=4, sampling=pb.SamplingParams(seed=0, max_tokens=20))
        assert isinstance(answer, pb.GenerateResponse)
        paid += answer.usage.completion_tokens
    assert paid == 16, "so 84 are left, and the fifth may need 80"
    assert isinstance(await asked(running, key, n=4, sampling=pb.SamplingParams(max_tokens=20)), pb.GenerateResponse)
    found = await asked(running, key, n=5, sampling=pb.SamplingParams(max_tokens=20))
    assert isinstance(found, Refused) and found.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_many_at_once_cannot_pass_it(run: Run, guard: Guard, still: None) -> None:
    """Of ten candidates four are sampled and four wait; who leaves the queue gets them back, who sampled does not."""
    key = guard.key("anna", candidates_per_minute=10)
    policy = ScriptedPolicy(lambda index: forever())
    limits = {"limits.max_candidates_in_flight": 4, "limits.max_n": 4, "defaults.n": 4}
    running = await run(policy, settings={"security.api_keys": str(guard.keys), **limits})
    calls = [running.stub.Generate(question(n=4), metadata=shows(key)) for _ in range(6)]
    await until(lambda: policy.running == 4 and running.admission.queued == 4)
    await until(lambda: sum(call.done() for call in calls) == 4)
    waits = [call for call in calls if not call.done()]
    assert {await call.code() for call in calls if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    for call in waits:
        call.cancel()
    await running.at_rest()
    left = running.stub.Generate(question(n=4), metadata=shows(key))
    await until(lambda: policy.running == 4)
    found = await asked(running, key, n=3)
    assert isinstance(found, Refused) and found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    left.cancel()
    await running.at_rest()


async def test_a_stream_and_a_scoring_are_charged_too(run: Run, guard: Guard, still: None) -> None:
    key = guard.key("anna", candidates_per_minute=10)
    running = await run(settings={"security.api_keys": str(guard.keys)})
    stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(n=4)), metadata=shows(key))
    assert [event async for event in stream][-1].HasField("final")
    scoring = pb.ScoreRequest(text="q", completions=["a", "b", "c", "d"])
    await running.stub.Score(scoring, metadata=shows(key))
    found = await refusal(running.stub.Score(scoring, metadata=shows(key)))
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = await refusal(_all(running, question(n=3), key))
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def _all(running: Any, request: pb.GenerateRequest, key: str) -> list[pb.GenerateStreamResponse]:
    stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=request), metadata=shows(key))
    return [event async for event in stream]


# Who calls


async def test_the_principal_scopes_ids_and_is_logged(run: Run, guard: Guard) -> None:
    anna, bob = guard.key("anna"), guard.key("bob")
    running = await run(settings={"security.api_keys": str(guard.keys)})
    first = await asked(running, anna, request_id="same")
    second = await asked(running, bob, request_id="same", n=3)
    assert isinstance(first, pb.GenerateResponse) and isinstance(second, pb.GenerateResponse)
    assert not second.replayed, "another's id is not known to him"
    assert {(record.principal, record.n) for record in running.records()} == {("anna", 4), ("bob", 3)}
    newer = guard.key("anna")
    await asyncio.sleep(watched.LOOK_S)
    again = await asked(running, newer, request_id="same")
    assert isinstance(again, pb.GenerateResponse) and again.replayed, "another key of the same name is the same caller"
    feedback = pb.RecordFeedbackRequest(request_id="same", name="x", bool_value=True, candidate_index=3)
    await running.stub.RecordFeedback(feedback, metadata=shows(anna))
    found = await refusal(running.stub.RecordFeedback(feedback, metadata=shows(bob)))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT, "candidate 3 of his own answer is not there"


async def test_turns_are_shared_between_principals_not_connections(run: Run, guard: Guard) -> None:
    """Anna's many connections wait as one; bob, who comes last, is served after one request of hers."""
    anna, bob = guard.key("anna"), guard.key("bob")
    gates: dict[int, asyncio.Event] = {}
    order: list[int] = []

    async def script(index: int) -> Any:
        order.append(index)
        await gates.setdefault(index, asyncio.Event()).wait()
        return says(str(index))

    settings = {
        "security.api_keys": str(guard.keys),
        "limits.max_candidates_in_flight": 1,
        "limits.max_n": 1,
        "defaults.n": 1,
    }
    running = await run(ScriptedPolicy(script), settings=settings)
    calls = []
    address = running.server.address
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(4)]
    for number, (key, channel) in enumerate(zip([anna, anna, anna, bob], channels, strict=True)):
        request = question(n=1, sampling=pb.SamplingParams(seed=number))
        calls.append(BestOfNServiceStub(channel).Generate(request, metadata=shows(key)))
        await until(lambda number=number: running.admission.queued == number and order[:1] == [0])  # type: ignore[misc]
    for served in range(4):
        await until(lambda served=served: len(order) == served + 1)  # type: ignore[misc]
        gates[order[-1]].set()
    await asyncio.gather(*calls)
    for channel in channels:
        await channel.close()
    assert order.index(3) < order.index(2), "bob is before anna's second that waits"


async def test_a_server_without_keys_asks_for_none(start_server: StartServer) -> None:
    server = await start_server()
    async with grpc.aio.insecure_channel(server.address) as channel:
        await BestOfNServiceStub(channel).Generate(question(), metadata=shows("whatever"))
