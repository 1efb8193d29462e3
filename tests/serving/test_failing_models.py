"""Models that fail, as the synthetic ones do on demand, and what the operator learns of it.

Of all the ways in which models fail there is one case each in the fault catalogue (tests/faults).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import RewardFailed, SamplingFailed, Unavailable
from bon_server.core.types import Completion, Outcome, Score
from tests.fakes import ScriptedPolicy, ScriptedReward
from tests.serving.conftest import Run
from tests.serving.running import Refused, question

CANARY = "canary-5e1f"


def assert_opaque(refused: Refused, logged: str) -> None:
    """INTERNAL with an id that is in the server's log, and nothing of what went wrong."""
    assert refused.code is grpc.StatusCode.INTERNAL
    match = re.fullmatch(r"internal error ([0-9a-f]{12}); the server's log has the details", refused.details)
    assert match is not None
    assert match[1] in logged
    assert CANARY not in refused.everything_said
    assert CANARY not in logged


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
        ({"reward.models": ["synthetic:nan_rate=1"]}, "NothingFinite"),
    ],
)
async def test_everything_fails(
    run: Run, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], error: str
) -> None:
    running = await run(settings=settings)
    assert_opaque(await running.refused(request_id="a"), caplog.text)
    assert running.record("a").error == error


async def test_a_reward_model_whose_call_itself_raises(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ScriptedReward):
        def score(self, *_: Any) -> Any:
            raise ZeroDivisionError(CANARY)

    running = await run(ScriptedPolicy(), Broken())
    assert_opaque(await running.refused(), caplog.text)


async def test_the_operator_learns_why(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(text: str) -> Score:
        raise RewardFailed("out of memory")

    running = await run(ScriptedPolicy(), ScriptedReward(fail))
    assert_opaque(await running.refused(), caplog.text)
    assert "out of memory" in caplog.text


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
