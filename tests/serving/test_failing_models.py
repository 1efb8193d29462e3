"""Models that fail, return nonsense or have bugs: the caller learns a code and an id, the log keeps the rest."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.errors import RewardFailed, SamplingFailed, Unavailable
from bon_server.types import CandidateStatus, Completion, Outcome, Score
from tests.fakes import ScriptedPolicy, ScriptedReward, named_after_index, says, scored
from tests.serving.conftest import Run
from tests.serving.running import Refused, Running, question, refusal
from tests.waiting import forever

CANARY = "canary-5e1f"
NON_FINITE = Score(CandidateStatus.NON_FINITE)


def assert_opaque(refused: Refused, logged: str) -> None:
    """INTERNAL with an id that is in the server's log, and nothing of what went wrong."""
    assert refused.code is grpc.StatusCode.INTERNAL
    match = re.fullmatch(r"internal error ([0-9a-f]{12}); the server's log has the details", refused.details)
    assert match is not None
    assert match[1] in logged
    assert CANARY not in refused.everything_said
    assert CANARY not in logged


async def test_one_nan_is_left_out_and_marked(run: Run) -> None:
    async def nan_for_the_longest(text: str) -> Score:
        return NON_FINITE if text == "answer 10" else scored(float(len(text)))

    running = await run(ScriptedPolicy(), ScriptedReward(nan_for_the_longest))
    answer = await running.ask(request_id="a", n=11)
    assert (answer.best.index, answer.partial, answer.n_generated, answer.n_scored) == (0, True, 11, 10)
    nan = answer.candidates[10]
    assert nan.status == pb.CANDIDATE_STATUS_NON_FINITE
    assert not nan.HasField("reward")
    assert running.record("a").candidates[10].reward is None
    assert (await running.metrics())['bon_candidates_total{status="non_finite"}'] == 1


async def test_nothing_but_nan(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    running = await run(settings={"reward.models": ["synthetic:nan_rate=1"]})
    assert_opaque(await running.refused(request_id="a"), caplog.text)
    record = running.record("a")
    assert (record.outcome, record.error, record.selected_index) == (Outcome.FAILED, "NothingFinite", None)
    assert [candidate.status.value for candidate in record.candidates] == ["non_finite"] * 4
    assert all(candidate.text for candidate in record.candidates)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
async def test_a_reward_model_that_breaks_its_promise_is_a_bug(
    run: Run, caplog: pytest.LogCaptureFixture, reward: float
) -> None:
    """It says SCORED and means NaN. Neither answer nor log may have it."""

    async def break_promise(text: str) -> Score:
        return Score(CandidateStatus.SCORED, reward)

    running = await run(ScriptedPolicy(), ScriptedReward(break_promise))
    assert_opaque(await running.refused(request_id="a"), caplog.text)
    assert all(candidate.reward is None for record in running.records() for candidate in record.candidates)


async def test_some_samples_fail(run: Run) -> None:
    running = await run(settings={"policy.model": "synthetic:fail_rate=0.5"})
    answer = await running.ask(request_id="a", n=64)
    failed = [c for c in answer.candidates if c.status == pb.CANDIDATE_STATUS_FAILED]
    assert 0 < len(failed) < 64
    assert answer.partial and answer.n_generated == answer.n_scored == 64 - len(failed)
    assert all(candidate.finish_reason == pb.FINISH_REASON_ERROR for candidate in failed)
    assert running.record("a").outcome is Outcome.PARTIAL


async def test_some_scores_fail(run: Run) -> None:
    running = await run(settings={"reward.models": ["synthetic:fail_rate=0.5"]})
    answer = await running.ask(request_id="a", n=64)
    failed = [c for c in answer.candidates if c.status == pb.CANDIDATE_STATUS_FAILED]
    assert 0 < len(failed) < 64
    assert (answer.n_generated, answer.n_scored) == (64, 64 - len(failed))
    assert all(candidate.finish_reason == pb.FINISH_REASON_STOP for candidate in failed)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"policy.model": "synthetic:fail_rate=1"}, "SamplingFailed"),
        ({"reward.models": ["synthetic:fail_rate=1"]}, "RewardFailed"),
    ],
)
async def test_everything_fails(
    run: Run, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], error: str
) -> None:
    running = await run(settings=settings)
    assert_opaque(await running.refused(request_id="a"), caplog.text)
    assert running.record("a").error == error


@pytest.mark.parametrize(
    "bug", [RuntimeError(CANARY), KeyError(CANARY), asyncio.CancelledError(CANARY), TimeoutError()]
)
@pytest.mark.parametrize("place", ["encode", "sample", "score"])
async def test_a_bug_or_a_cancellation_from_inside(
    run: Run, caplog: pytest.LogCaptureFixture, bug: BaseException, place: str
) -> None:
    """Never UNKNOWN, never the message, and never a caller who waits for ever."""

    async def fail(*_: Any) -> Any:
        raise bug

    policy, reward_model = ScriptedPolicy(), ScriptedReward()
    running = await run(policy, reward_model)
    if place == "encode":
        policy.prepare = fail
    elif place == "sample":
        policy.script = fail
    else:
        reward_model.script = fail
    assert_opaque(await running.refused(request_id="a"), caplog.text)
    if place != "encode":
        record = running.record("a")
        assert (record.outcome, record.error) == (Outcome.FAILED, "InternalError")
        assert CANARY not in repr(record)
    stream = running.stub.GenerateStream(pb.GenerateStreamRequest(request=question()))
    assert_opaque(await refusal(_last(stream)), caplog.text)
    policy.prepare, policy.script, reward_model.script = None, named_after_index, ScriptedReward().script
    assert (await running.ask(request_id="a")).n_scored == 4


async def _last(stream: grpc.aio.UnaryStreamCall[pb.GenerateStreamRequest, pb.GenerateStreamResponse]) -> object:
    return [event async for event in stream][-1]


async def test_a_reward_model_whose_call_itself_raises(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ScriptedReward):
        def score(self, *_: Any) -> Any:
            raise ZeroDivisionError(CANARY)

    running = await run(ScriptedPolicy(), Broken())
    assert_opaque(await running.refused(), caplog.text)


async def test_one_failed_reward_model_is_no_random_pick(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def fail_the_second(text: str) -> Score:
        if text == "answer 1":
            raise RewardFailed("out of memory")
        return scored(1.0)

    running = await run(ScriptedPolicy(), ScriptedReward(fail_the_second))
    assert_opaque(await running.refused(request_id="a"), caplog.text)
    record = running.record("a")
    assert (record.outcome, record.error) == (Outcome.FAILED, "RewardFailed")
    assert [candidate.text for candidate in record.candidates] == [f"answer {i}" for i in range(4)]
    assert record.candidates[1].status is CandidateStatus.FAILED
    assert "out of memory" in caplog.text, "the operator has to know"


async def test_a_dead_engine_is_unavailable(run: Run) -> None:
    async def dead(index: int) -> Completion:
        raise Unavailable("the engine died", 2000)

    running = await run(ScriptedPolicy(dead))
    refused = await running.refused()
    assert (refused.code, refused.pushback_ms) == (grpc.StatusCode.UNAVAILABLE, 2000)


async def test_empty_completions_are_scored_like_others(run: Run) -> None:
    async def nothing(index: int) -> Completion:
        return says("")

    running = await run(ScriptedPolicy(nothing), ScriptedReward())
    answer = await running.ask(request_id="a")
    assert (answer.best.text, answer.best.index, answer.n_scored) == ("", 0, 4)
    assert answer.best.reward == 0.0
    assert answer.best.HasField("reward")


async def test_a_completion_too_long_for_the_reward_model_is_marked(run: Run) -> None:
    async def too_long(text: str) -> Score:
        return Score(CandidateStatus.TOO_LONG) if text == "answer 0" else scored(1.0)

    running = await run(ScriptedPolicy(), ScriptedReward(too_long))
    answer = await running.ask(request_id="a")
    assert answer.candidates[0].status == pb.CANDIDATE_STATUS_TOO_LONG
    assert (answer.best.index, answer.partial) == (1, True)


async def test_one_hanging_candidate_does_not_hold_up_other_requests(run: Run) -> None:
    async def hang_for_ever(index: int) -> Completion:
        if index == 0 and len(policy.started) == 1:
            await forever()
        return says(f"answer {index}")

    policy = ScriptedPolicy(hang_for_ever)
    running: Running = await run(policy)
    hanging = running.stub.Generate(question(n=1))
    answers = await asyncio.gather(*(running.ask() for _ in range(10)))
    assert all(answer.n_scored == 4 for answer in answers)
    hanging.cancel()


FAILURES: dict[str, Callable[[], Exception]] = {
    "sample": lambda: SamplingFailed("engine error"),
    "engine": lambda: Unavailable("the engine died", 2000),
    "bug": lambda: ZeroDivisionError(CANARY),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
async def test_a_failure_while_the_caller_leaves_is_nobodys_error(run: Run, failure: Callable[[], Exception]) -> None:
    """Nothing may end as an exception that was never retrieved: the event loop would print it."""
    policy = ScriptedPolicy()
    running = await run(policy)
    calls: list[Any] = []

    async def leave_and_fail(index: int) -> Completion:
        for call in calls:
            call.cancel()
        await asyncio.sleep(0.001 * index)
        raise failure()

    policy.script = leave_and_fail
    for streamed in (False, True):
        for _ in range(5):
            request = question()
            stream = pb.GenerateStreamRequest(request=request)
            calls.append(running.stub.GenerateStream(stream) if streamed else running.stub.Generate(request))
        await running.at_rest()
