"""A request that is stopped from outside: nothing is lost, nothing runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.config.settings import LimitsConfig
from bon_server.core.best_of_n import STOP_GRACE_S, UNWIND_S, Answer, Stop, best_of_n
from bon_server.core.errors import (
    DeadlinePassed,
    InternalError,
    RequestCancelled,
    RequestError,
    Unavailable,
)
from bon_server.core.types import (
    Candidate,
    Completion,
    FinishReason,
    Outcome,
    Score,
    SelectionReason,
)
from tests.asking import after_ticks, ask, complete, rewards_of, statuses, wait_until
from tests.fakes import PARTIAL, ScriptedPolicy, ScriptedReward, a_request, says, scored
from tests.waiting import SOON_S, forever, until

STOPS = [DeadlinePassed("passed"), RequestCancelled("left"), Unavailable("shutting down", 5)]


async def first_two_answer(index: int) -> Completion:
    """The others are sampled for ever."""
    if index > 1:
        await forever()
    return says(str(index))


@pytest.mark.parametrize("reason", STOPS, ids=lambda reason: type(reason).__name__)
def test_stopped_while_sampling(reason: RequestError) -> None:
    ended: list[Candidate] = []
    answer = ask(
        a_request(4),
        ScriptedPolicy(first_two_answer),
        ScriptedReward(rewards_of([1.0, 2.0])),
        wait_until(lambda: len(ended) == 2, reason),
        ended,
    )
    assert statuses(answer) == ["scored", "scored", "cancelled", "cancelled"]
    assert [candidate.text for candidate in answer.candidates] == ["0", "1", PARTIAL, PARTIAL]
    assert sorted(candidate.index for candidate in ended) == [0, 1, 2, 3]
    if isinstance(reason, DeadlinePassed):
        assert (answer.error, answer.selected_index, answer.reason) == (None, 1, SelectionReason.DEADLINE)
        assert answer.outcome is Outcome.PARTIAL
    else:
        assert (answer.error, answer.selected_index, answer.reason) == (reason, None, None)


@pytest.mark.parametrize("reason", STOPS, ids=lambda reason: type(reason).__name__)
def test_stopped_while_scoring(reason: RequestError) -> None:
    async def first_only(text: str) -> Score:
        if text != "answer 0":
            await forever()
        return scored(1.0)

    ended: list[Candidate] = []
    reward_model = ScriptedReward(first_only)
    answer = ask(
        a_request(3), ScriptedPolicy(), reward_model, wait_until(lambda: reward_model.running == 2, reason), ended
    )
    assert statuses(answer) == ["scored", "cancelled", "cancelled"]
    assert [candidate.text for candidate in answer.candidates] == ["answer 0", "answer 1", "answer 2"]
    assert all(candidate.finish_reason is FinishReason.STOP for candidate in answer.candidates)
    assert sorted(ended, key=lambda candidate: candidate.index) == list(answer.candidates)


def test_a_deadline_before_anything_was_scored_is_an_error() -> None:
    policy = ScriptedPolicy(lambda index: _never(index))
    answer = ask(
        a_request(2), policy, ScriptedReward(), wait_until(lambda: policy.running == 2, DeadlinePassed("passed"))
    )
    assert isinstance(answer.error, DeadlinePassed)
    assert answer.outcome is Outcome.FAILED
    assert statuses(answer) == ["cancelled", "cancelled"]


async def _never(index: int) -> Completion:
    await forever()
    raise AssertionError


def test_a_policy_that_does_not_listen_is_cancelled() -> None:
    policy = ScriptedPolicy(first_two_answer, obeys_abort=False)
    ended: list[Candidate] = []
    reward_model = ScriptedReward(rewards_of([1.0, 2.0]))
    stop_when = wait_until(lambda: len(ended) == 2, DeadlinePassed("passed"))
    answer = ask(a_request(4), policy, reward_model, stop_when, ended)
    assert (answer.selected_index, answer.reason) == (1, SelectionReason.DEADLINE)
    assert [candidate.text for candidate in answer.candidates] == ["0", "1", "", ""]


def test_stopping_takes_less_than_the_server_keeps_free_before_a_deadline() -> None:
    """The rest is for committing and sending."""
    assert 0.8 * LimitsConfig().deadline_margin_ms / 1e3 > STOP_GRACE_S + UNWIND_S


def test_the_engine_is_free_before_the_answer_is_there() -> None:
    """A failure of one candidate ends the others, also those that take their time."""
    policy = ScriptedPolicy(failing_first_others_hang, obeys_abort=False, unwind_s=0.01)
    answer = ask(a_request(4), policy, ScriptedReward())
    assert isinstance(answer.error, InternalError)


async def failing_first_others_hang(index: int) -> Completion:
    if index > 0:
        await forever()
    raise ZeroDivisionError


def test_what_completes_after_the_stop_is_kept_and_not_scored() -> None:
    """An abort can come too late for the engine: the sample is then complete, but nobody waits for a score."""

    async def complete_when_stopped(index: int) -> Completion:
        if index == 1:
            await until(lambda: bool(stopped))
            await asyncio.sleep(0.01)
        return says(str(index))

    async def stop_after_first() -> RequestError:
        await until(lambda: bool(ended))
        stopped.append(True)
        return DeadlinePassed("passed")

    stopped: list[bool] = []
    ended: list[Candidate] = []
    reward_model = ScriptedReward(rewards_of([1.0, 2.0]))
    policy = ScriptedPolicy(complete_when_stopped, obeys_abort=False)
    answer = ask(a_request(2), policy, reward_model, stop_after_first, ended)
    assert dict(reward_model.calls) == {"0": 1}
    assert statuses(answer) == ["scored", "cancelled"]
    assert answer.candidates[1].text == "1"
    assert [candidate.index for candidate in ended] == [0, 1]


def test_a_reward_function_that_takes_its_time_to_go_is_waited_for() -> None:
    async def unwinds(text: str) -> Score:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
        raise AssertionError

    reward_model = ScriptedReward(unwinds)
    answer = ask(a_request(2), ScriptedPolicy(), reward_model, wait_until(lambda: reward_model.running == 2, STOPS[1]))
    assert answer.error is STOPS[1]


def test_a_reward_function_that_refuses_to_go_does_not_keep_the_answer() -> None:
    let_go = False

    async def stubborn(text: str) -> Score:
        while not let_go:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.002)
        return scored(1.0)

    async def run() -> Answer:
        nonlocal let_go
        stop: Stop = asyncio.get_running_loop().create_future()
        reward_model = ScriptedReward(stubborn)
        stopping = asyncio.create_task(complete(stop, wait_until(lambda: reward_model.running == 2, STOPS[1])))
        answer = await asyncio.wait_for(best_of_n(a_request(2), ScriptedPolicy(), reward_model, stop), SOON_S)
        await stopping
        let_go = True
        await until(lambda: not reward_model.running)
        return answer

    assert asyncio.run(run()).error is STOPS[1]


def test_an_abort_that_hangs_or_fails_does_not_keep_the_answer() -> None:
    async def hangs(keys: Sequence[str]) -> None:
        await forever()

    async def fails(keys: Sequence[str]) -> None:
        raise ZeroDivisionError("canary")

    for abort in (hangs, fails):
        policy = ScriptedPolicy(first_two_answer)
        policy.abort = abort  # type: ignore[method-assign]
        ended: list[Candidate] = []
        reward_model = ScriptedReward(rewards_of([1.0, 2.0]))
        stop_when = wait_until(lambda ended=ended: len(ended) == 2, DeadlinePassed("passed"))  # type: ignore[misc]
        answer = ask(a_request(4), policy, reward_model, stop_when, ended)
        assert answer.selected_index == 1
        assert statuses(answer) == ["scored", "scored", "cancelled", "cancelled"]


def test_a_stop_after_the_last_score_changes_nothing() -> None:
    async def at_once() -> RequestError:
        return RequestCancelled("left")

    async def run() -> Answer:
        stop: Stop = asyncio.get_running_loop().create_future()

        def stop_with_last(candidate: Candidate) -> None:
            if candidate.index == 1:
                stop.set_exception(RequestCancelled("left"))
                stop.exception()

        policy = ScriptedPolicy(after_ticks([0, 20], str))
        return await best_of_n(a_request(2), policy, ScriptedReward(rewards_of([0, 1])), stop, stop_with_last)

    answer = asyncio.run(run())
    assert (answer.error, answer.selected_index) == (None, 1)


@pytest.mark.parametrize("reason", STOPS, ids=lambda reason: type(reason).__name__)
def test_a_stop_in_the_same_moment_as_the_last_score_changes_nothing(reason: RequestError) -> None:
    async def run() -> Answer:
        stop: Stop = asyncio.get_running_loop().create_future()
        last: asyncio.Future[Score] = asyncio.get_running_loop().create_future()

        async def score_last_and_stop() -> None:
            await until(lambda: reward_model.running == 1)
            last.set_result(scored(2.0))
            stop.set_exception(reason)
            stop.exception()

        async def score(text: str) -> Score:
            return scored(1.0) if text == "answer 0" else await last

        reward_model = ScriptedReward(score)
        stopping = asyncio.create_task(score_last_and_stop())
        answer = await best_of_n(a_request(2), ScriptedPolicy(), reward_model, stop)
        await stopping
        return answer

    answer = asyncio.run(run())
    assert (answer.error, answer.reason, answer.selected_index) == (None, SelectionReason.ARGMAX, 1)


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
    st.integers(0, 12),
    st.sampled_from(STOPS),
    st.booleans(),
)
def test_whenever_it_is_stopped_everything_is_kept_once(
    ticks: list[int], stop_tick: int, reason: RequestError, obeys_abort: bool
) -> None:
    async def after_some_ticks() -> RequestError:
        for _ in range(stop_tick):
            await asyncio.sleep(0)
        return reason

    async def slow_score(text: str) -> Score:
        for _ in range(int(text) % 3):
            await asyncio.sleep(0)
        return scored(float(text))

    ended: list[Candidate] = []
    policy = ScriptedPolicy(after_ticks(ticks, str), obeys_abort=obeys_abort)
    answer = ask(a_request(len(ticks)), policy, ScriptedReward(slow_score), after_some_ticks, ended)
    assert sorted(ended, key=lambda candidate: candidate.index) == list(answer.candidates)
    rewards = [candidate.reward for candidate in answer.candidates if candidate.reward is not None]
    assert answer.error in (None, reason)
    if len(rewards) < len(ticks):
        assert (answer.error is None) == (isinstance(reason, DeadlinePassed) and rewards != [])
    if answer.error is None:
        assert answer.selected_index is not None
        assert answer.candidates[answer.selected_index].reward == max(rewards)
