"""Deadlines: the best so far in time, or DEADLINE_EXCEEDED; never late, and nothing sampled for nobody."""

from __future__ import annotations

import time

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.types import Completion, Outcome, Score, SelectionReason
from tests.fakes import PARTIAL, ScriptedPolicy, ScriptedReward, says, scored
from tests.serving.conftest import Run
from tests.serving.running import Running, question, refusal
from tests.waiting import forever, until

DEADLINE_S = 2.0
MARGIN = {"limits.deadline_margin_ms": 1500}
"""Wide, because a busy machine takes its time to commit and answer: candidates are stopped after half a second."""

ONLY_FOUR = {"limits.max_candidates_in_flight": 4, "limits.max_n": 4, "defaults.n": 4}


async def first_two_answer(index: int) -> Completion:
    """The others are sampled for ever."""
    if index > 1:
        await forever()
    return says("answer " + "!" * index)


async def never(index: int) -> Completion:
    """Nothing is ever sampled."""
    await forever()
    raise AssertionError


async def answered_in_time(running: Running) -> pb.GenerateResponse:
    """Asks with a deadline and checks that the answer is there before it."""
    began = time.monotonic()
    answer = await running.ask(request_id="a", within_s=DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S
    return answer


@pytest.mark.parametrize("obeys_abort", [True, False], ids=["engine listens", "engine is busy"])
async def test_in_the_middle_of_sampling(run: Run, obeys_abort: bool) -> None:
    running = await run(ScriptedPolicy(first_two_answer, obeys_abort=obeys_abort), ScriptedReward(), MARGIN)
    answer = await answered_in_time(running)
    assert answer.best.text == "answer !"
    assert answer.selection_reason == pb.SELECTION_REASON_DEADLINE
    assert (answer.partial, answer.n_requested, answer.n_generated, answer.n_scored) == (True, 4, 2, 2)
    assert [candidate.status for candidate in answer.candidates[2:]] == [pb.CANDIDATE_STATUS_CANCELLED] * 2
    assert [candidate.text for candidate in answer.candidates[2:]] == [PARTIAL if obeys_abort else ""] * 2
    assert not answer.HasField("kl"), "the bound does not hold for a stopped run"
    record = running.record("a")
    assert (record.outcome, record.selection_reason) == (Outcome.PARTIAL, SelectionReason.DEADLINE)


async def test_in_the_middle_of_scoring(run: Run) -> None:
    async def only_first(text: str) -> Score:
        if text != "answer 0":
            await forever()
        return scored(1.0)

    running = await run(ScriptedPolicy(), ScriptedReward(only_first), MARGIN)
    answer = await answered_in_time(running)
    assert (answer.best.index, answer.n_generated, answer.n_scored) == (0, 4, 1)


async def test_an_answer_by_the_deadline_is_replayed(run: Run) -> None:
    running = await run(ScriptedPolicy(first_two_answer), settings=MARGIN)
    answer = await answered_in_time(running)
    again = await running.ask(request_id="a")
    assert again.replayed and again.best == answer.best and again.partial


@pytest.mark.parametrize(
    "policy", ["synthetic:hang_rate=1", "synthetic:tokens_per_s=1,tokens=1000"], ids=["hanging", "too slow"]
)
async def test_before_anything_is_scored(run: Run, policy: str) -> None:
    running = await run(settings=MARGIN | {"policy.model": policy})
    refused = await running.refused(request_id="a", within_s=DEADLINE_S)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await running.at_rest()
    record = running.record("a")
    assert (record.outcome, record.error) == (Outcome.FAILED, "DeadlinePassed")
    assert [candidate.status.value for candidate in record.candidates] == ["cancelled"] * 4


async def test_the_server_says_so_before_the_caller_gives_up(run: Run) -> None:
    running = await run(ScriptedPolicy(never), settings=MARGIN)
    refused = await running.refused(within_s=DEADLINE_S)
    assert refused.details == "the deadline passed before a candidate was scored"


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05])
async def test_no_time_at_all(run: Run, seconds: float) -> None:
    policy = ScriptedPolicy()
    running = await run(policy)
    refused = await running.refused(request_id="a", within_s=seconds)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await running.at_rest()
    assert policy.started == [], "the engine is untouched"
    assert running.records() == []


async def test_in_the_queue(run: Run) -> None:
    policy = ScriptedPolicy(never)
    running = await run(policy, settings=MARGIN | ONLY_FOUR)
    first = running.stub.Generate(question(request_id="first"))
    await until(lambda: policy.running == 4)
    refused = await running.refused(request_id="second", within_s=DEADLINE_S)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(policy.started) == 4
    first.cancel()
    await running.at_rest()
    assert [record.request_id for record in running.records()] == ["first"]


async def all_but_first(text: str) -> Score:
    """Scored for ever."""
    if text != "answer ":
        await forever()
    return scored(1.0)


@pytest.mark.parametrize("stage", ["sampling", "scoring"])
async def test_of_a_stream_every_candidate_and_then_the_best(run: Run, stage: str) -> None:
    reward_model = ScriptedReward() if stage == "sampling" else ScriptedReward(all_but_first)
    running = await run(ScriptedPolicy(first_two_answer), reward_model, MARGIN)
    request = pb.GenerateStreamRequest(request=question(request_id="a"))
    events = [event async for event in running.stub.GenerateStream(request, timeout=DEADLINE_S)]
    sent = [event.candidate for event in events if event.WhichOneof("event") == "candidate"]
    assert sorted(candidate.index for candidate in sent) == [0, 1, 2, 3]
    assert events[-1].final.selection_reason == pb.SELECTION_REASON_DEADLINE
    assert sorted(sent, key=lambda candidate: candidate.index) == list(events[-1].final.candidates)


async def test_of_score_what_was_scored(run: Run) -> None:
    async def only_short(text: str) -> Score:
        if len(text) > 1:
            await forever()
        return scored(0.5)

    running = await run(None, ScriptedReward(only_short), MARGIN)
    request = pb.ScoreRequest(request_id="a", text="question", completions=["x", "long", "y"])
    answer = await running.stub.Score(request, timeout=DEADLINE_S)
    statuses = [pb.CandidateStatus.Name(c.status).removeprefix("CANDIDATE_STATUS_") for c in answer.candidates]
    assert statuses == ["SCORED", "CANCELLED", "SCORED"]
    request.completions[:] = ["long"]
    request.request_id = "b"
    refused = await refusal(running.stub.Score(request, timeout=DEADLINE_S))
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_servers_own_where_the_caller_sets_none(run: Run) -> None:
    running = await run(ScriptedPolicy(first_two_answer), settings={"limits.default_deadline_s": 0.4})
    answer = await running.stub.Generate(question())
    assert answer.selection_reason == pb.SELECTION_REASON_DEADLINE
