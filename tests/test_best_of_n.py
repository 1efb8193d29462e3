"""The algorithm, at its two Protocols: what is chosen, what is kept, and that nothing runs on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.best_of_n import STOP_GRACE_S, UNWIND_S, Answer, Stop, best_of_n, overlap
from bon_server.config import LimitsConfig
from bon_server.errors import (
    DeadlinePassed,
    InternalError,
    NothingFinite,
    RequestCancelled,
    RequestError,
    RewardFailed,
    SamplingFailed,
    Unavailable,
)
from bon_server.stopping import Spread
from bon_server.types import (
    Budget,
    Candidate,
    CandidateStatus,
    Completion,
    FinishReason,
    Milestone,
    Outcome,
    Request,
    Score,
    SelectionReason,
    SelectionRule,
)
from tests.fakes import PARTIAL, ScriptedPolicy, ScriptedReward, a_request, named_after_index, says, scored
from tests.waiting import SOON_S, forever, until


def ask(
    request: Request,
    policy: ScriptedPolicy,
    reward_model: ScriptedReward,
    stop_when: Callable[[], Awaitable[RequestError]] | None = None,
    ended: list[Candidate] | None = None,
) -> Answer:
    """Runs `best_of_n` in a loop of its own and checks that it leaves nothing behind."""

    async def run() -> Answer:
        on_end = (lambda candidate: None) if ended is None else ended.append
        stop: Stop = asyncio.get_running_loop().create_future()
        stopping = asyncio.create_task(_stop(stop, stop_when))
        async with nothing_left_behind(policy, reward_model):
            answer = await asyncio.wait_for(best_of_n(request, policy, reward_model, stop, on_end), SOON_S)
        stopping.cancel()
        return answer

    return asyncio.run(run())


async def _stop(stop: Stop, when: Callable[[], Awaitable[RequestError]] | None) -> None:
    if when is not None:
        stop.set_exception(await when())
        stop.exception()


@asynccontextmanager
async def nothing_left_behind(policy: ScriptedPolicy, reward_model: ScriptedReward) -> AsyncIterator[None]:
    """At the end no task is pending that was not there before, and neither model is at work."""
    loop, before, unhandled = asyncio.get_running_loop(), asyncio.all_tasks(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    yield
    assert (policy.running, reward_model.running) == (0, 0)
    await asyncio.sleep(0)  # fakes cancel their own helpers in the same moment
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()
    assert unhandled == []


def after_ticks(ticks: Sequence[int], text: Callable[[int], str]) -> Callable[[int], Coroutine[Any, Any, Completion]]:
    """Candidate i says `text(i)` after `ticks[i]` turns of the event loop."""

    async def script(index: int) -> Completion:
        for _ in range(ticks[index]):
            await asyncio.sleep(0)
        return says(text(index))

    return script


def rewards_of(values: Sequence[float | None]) -> Callable[[str], Coroutine[Any, Any, Score]]:
    """Rewards by the number in the text; what is not finite is marked, as reward models must; None fails."""

    async def script(text: str) -> Score:
        value = values[int(text)]
        if value is None:
            return Score(CandidateStatus.FAILED, error="scripted")
        return scored(value) if math.isfinite(value) else Score(CandidateStatus.NON_FINITE)

    return script


def wait_until(condition: Callable[[], bool], error: RequestError) -> Callable[[], Awaitable[RequestError]]:
    """Stops with `error` once the condition holds."""

    async def wait() -> RequestError:
        await until(condition)
        return error

    return wait


def statuses(answer: Answer) -> list[str]:
    """In index order."""
    return [candidate.status.value for candidate in answer.candidates]


def on_a_budget(n: int, **budget: Any) -> Request:
    """A question with a budget."""
    return replace(a_request(n), budget=Budget(**budget))


# What is chosen

few_rewards = st.one_of(
    st.none(), st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, math.nan, math.inf, -math.inf]), st.floats()
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[float | None], list[int]]:
    """Rewards with many ties and oddities, and an order of arrival."""
    rewards = draw(st.lists(few_rewards, min_size=1, max_size=9))
    return rewards, draw(st.lists(st.integers(0, 6), min_size=len(rewards), max_size=len(rewards)))


@given(runs())
def test_the_highest_finite_reward_wins_and_ties_go_to_the_lowest_index(
    run: tuple[list[float | None], list[int]],
) -> None:
    rewards, ticks = run
    ended: list[Candidate] = []
    answer = ask(
        a_request(len(rewards)),
        ScriptedPolicy(after_ticks(ticks, str)),
        ScriptedReward(rewards_of(rewards)),
        ended=ended,
    )
    finite = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
    assert answer.selected_index == (rewards.index(max(finite)) if finite else None)
    assert (answer.error is None) == bool(finite)
    assert [candidate.index for candidate in answer.candidates] == list(range(len(rewards)))
    assert [c.reward for c in answer.candidates] == [r if r is not None and math.isfinite(r) else None for r in rewards]
    assert sorted(ended, key=lambda candidate: candidate.index) == list(answer.candidates), (
        "each once, as in the answer"
    )


@given(runs())
def test_for_one_prompt_argmax_is_top_1_of_the_sorted_rewards(run: tuple[list[float | None], list[int]]) -> None:
    rewards, ticks = run
    answer = ask(a_request(len(rewards)), ScriptedPolicy(after_ticks(ticks, str)), ScriptedReward(rewards_of(rewards)))
    by_reward = sorted(
        (i for i, reward in enumerate(rewards) if reward is not None and math.isfinite(reward)),
        key=lambda i: -(rewards[i] or 0.0),
    )
    assert answer.selected_index == (by_reward[0] if by_reward else None)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=10), st.lists(st.integers(0, 6), min_size=10, max_size=10))
def test_identical_completions_are_scored_once_and_each_has_the_reward(texts: list[str], ticks: list[int]) -> None:
    async def slowly(text: str) -> Score:
        for _ in range(ord(text) - ord("a")):
            await asyncio.sleep(0)
        return Score(CandidateStatus.SCORED, float(ord(text)), {"part": 1.0}, tokens=7)

    reward_model = ScriptedReward(slowly)
    answer = ask(a_request(len(texts)), ScriptedPolicy(after_ticks(ticks, texts.__getitem__)), reward_model)
    assert dict(reward_model.calls) == dict.fromkeys(texts, 1)
    assert [candidate.reward for candidate in answer.candidates] == [float(ord(text)) for text in texts]
    assert all(candidate.rewards == {"part": 1.0} for candidate in answer.candidates)
    assert answer.reward_model_tokens == 7 * len(set(texts))


def test_each_candidate_has_its_own_seed() -> None:
    policy = ScriptedPolicy()
    ask(replace(a_request(5), sampling=replace(a_request().sampling, seed=40)), policy, ScriptedReward())  # type: ignore[type-var]
    assert sorted(policy.started) == [40, 41, 42, 43, 44]


def test_without_a_seed_candidates_have_none() -> None:
    seeds: list[int | None] = []

    class Noting(ScriptedPolicy):
        async def sample(
            self, key: str, prompt_token_ids: Sequence[int], sampling: Any, milestone: Milestone | None = None
        ) -> Completion:
            seeds.append(sampling.seed)
            return says(key)

    ask(a_request(3, seed=None), Noting(), ScriptedReward())
    assert seeds == [None, None, None]


def test_the_only_one_is_chosen_as_the_only_one() -> None:
    assert ask(a_request(1), ScriptedPolicy(), ScriptedReward()).reason is SelectionReason.SINGLE
    assert ask(a_request(2), ScriptedPolicy(), ScriptedReward()).reason is SelectionReason.ARGMAX


def test_scoring_begins_while_others_are_still_sampled() -> None:
    async def second_waits_for_first_score(index: int) -> Completion:
        if index == 1:
            await until(lambda: bool(reward_model.calls))
        return await named_after_index(index)

    reward_model = ScriptedReward()
    assert ask(a_request(2), ScriptedPolicy(second_waits_for_first_score), reward_model).error is None


# What fails


def failing(error: Exception, *indices: int) -> Callable[[int], Coroutine[Any, Any, Completion]]:
    """These candidates fail, the others answer."""

    async def script(index: int) -> Completion:
        if index in indices:
            raise error
        return says(str(index))

    return script


def test_a_failed_sample_is_left_out_and_kept() -> None:
    answer = ask(
        a_request(3), ScriptedPolicy(failing(SamplingFailed("engine error"), 1)), ScriptedReward(rewards_of([0, 9, 1]))
    )
    assert (answer.selected_index, answer.outcome) == (2, Outcome.PARTIAL)
    assert statuses(answer) == ["scored", "failed", "scored"]
    assert answer.candidates[1].error == "engine error"
    assert answer.candidates[1].finish_reason is FinishReason.ERROR


@pytest.mark.parametrize(
    ("rewards", "error"),
    [([math.nan, math.inf], NothingFinite), ([None, None], RewardFailed), ([None, math.nan], RewardFailed)],
)
def test_no_reward_at_all_is_an_error(rewards: list[float | None], error: type[RequestError]) -> None:
    answer = ask(a_request(2), ScriptedPolicy(after_ticks([0, 0], str)), ScriptedReward(rewards_of(rewards)))
    assert isinstance(answer.error, error)
    assert (answer.outcome, answer.selected_index, answer.reason) == (Outcome.FAILED, None, None)


def test_no_sample_at_all_is_an_error() -> None:
    answer = ask(a_request(2), ScriptedPolicy(failing(SamplingFailed("engine error"), 0, 1)), ScriptedReward())
    assert isinstance(answer.error, SamplingFailed)


@pytest.mark.parametrize("error", [RewardFailed("out of memory"), Unavailable("the engine died", 5)])
def test_a_failed_model_fails_the_request_and_keeps_what_was_scored(error: RequestError) -> None:
    async def script(index: int) -> Completion:
        if index == 1:
            await until(lambda: bool(reward_model.calls))
            raise error
        if index == 2:
            await forever()
        return says("0")

    reward_model = ScriptedReward()
    answer = ask(a_request(3), ScriptedPolicy(script), reward_model)
    assert answer.error is error
    assert answer.outcome is Outcome.FAILED
    assert statuses(answer) == ["scored", "failed", "cancelled"]
    assert answer.candidates[1].error == type(error).__name__
    assert answer.candidates[2].text == PARTIAL


def test_a_bug_is_an_internal_error_with_its_cause() -> None:
    answer = ask(a_request(2), ScriptedPolicy(failing(ZeroDivisionError("canary"), 1)), ScriptedReward())
    assert isinstance(answer.error, InternalError)
    assert isinstance(answer.error.__cause__, ZeroDivisionError)
    assert "canary" not in str(answer.error)
    assert "canary" not in str(answer.candidates)


def test_a_model_that_cancels_itself_is_a_bug_and_not_a_cancelled_call() -> None:
    async def cancelled(text: str) -> Score:
        raise asyncio.CancelledError

    answer = ask(a_request(2), ScriptedPolicy(), ScriptedReward(cancelled))
    assert isinstance(answer.error, InternalError)


# What is stopped

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
        stopping = asyncio.create_task(_stop(stop, wait_until(lambda: reward_model.running == 2, STOPS[1])))
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


# Completions that the caller brings


def test_given_completions_are_scored_and_nothing_is_sampled_or_chosen() -> None:
    policy = ScriptedPolicy()
    request = replace(a_request(3), sampling=None, given=("1", "0", "1"))
    answer = ask(request, policy, ScriptedReward(rewards_of([math.nan, 5.0])))
    assert policy.started == []
    assert statuses(answer) == ["scored", "non_finite", "scored"]
    assert (answer.error, answer.selected_index, answer.reason) == (None, None, None)
    assert answer.outcome is Outcome.PARTIAL


def test_given_completions_that_were_not_scored_in_time_belong_to_no_policy() -> None:
    async def first_only(text: str) -> Score:
        if text != "a":
            await forever()
        return scored(1.0)

    reward_model = ScriptedReward(first_only)
    request = replace(a_request(2), sampling=None, given=("a", "b"))
    ended: list[Candidate] = []
    answer = ask(request, ScriptedPolicy(), reward_model, wait_until(lambda: len(ended) == 1, STOPS[0]), ended)
    assert answer.error is None
    assert [(c.text, c.status.value, c.policy_revision) for c in answer.candidates] == [
        ("a", "scored", ""),
        ("b", "cancelled", ""),
    ]


# Where the time went

spans = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda ends: (min(ends), max(ends))), max_size=8)


@given(spans, st.integers(0, 50))
def test_overlap_is_what_counting_nanoseconds_gives(given_spans: list[tuple[int, int]], sample_ns: int) -> None:
    scoring = {at for start, end in given_spans for at in range(start, end)}
    both = [at for at in scoring if at < sample_ns]
    assert overlap(given_spans, sample_ns) == (len(scoring), len(both) / len(scoring) if scoring else 0.0)


def test_times_of_candidates_count_from_the_request_and_durations_do_not() -> None:
    an_hour_ns = 3_600 * 10**9

    async def run() -> Answer:
        stop: Stop = asyncio.get_running_loop().create_future()
        return await best_of_n(a_request(3), ScriptedPolicy(), ScriptedReward(), stop, waited_ns=an_hour_ns)

    answer = asyncio.run(run())
    for candidate in answer.candidates:
        assert candidate.sampled_ns is not None and candidate.scored_ns is not None
        assert an_hour_ns <= candidate.sampled_ns <= candidate.scored_ns
    assert 0 < answer.sample_ns < an_hour_ns
    assert answer.score_ns < an_hour_ns


# Budgets


def test_a_reward_that_is_high_enough_ends_the_others() -> None:
    async def script(index: int) -> Completion:
        return says("9") if index == 1 else await forever()

    policy, ended = ScriptedPolicy(script), list[Candidate]()
    answer = ask(on_a_budget(4, stop_at_reward=9.0), policy, ScriptedReward(rewards_of(range(10))), ended=ended)
    assert (answer.selected_index, answer.reason, answer.outcome) == (1, SelectionReason.THRESHOLD, Outcome.PARTIAL)
    assert statuses(answer) == ["cancelled", "scored", "cancelled", "cancelled"]
    assert [candidate.text for candidate in answer.candidates] == [PARTIAL, "9", PARTIAL, PARTIAL]
    assert sorted(candidate.index for candidate in ended) == [0, 1, 2, 3]


def test_a_reward_that_is_never_reached_changes_nothing() -> None:
    answer = ask(on_a_budget(4, stop_at_reward=99.0), ScriptedPolicy(), ScriptedReward())
    assert (answer.reason, answer.outcome) == (SelectionReason.ARGMAX, Outcome.OK)


def test_the_last_one_can_be_the_one_that_is_high_enough() -> None:
    answer = ask(on_a_budget(1, stop_at_reward=0.0), ScriptedPolicy(), ScriptedReward())
    assert (answer.reason, answer.outcome) == (SelectionReason.THRESHOLD, Outcome.OK)


@pytest.mark.parametrize(("price", "started"), [(1e-9, 16), (1e9, 4)])
def test_an_adaptive_request_samples_by_its_price(price: float, started: int) -> None:
    policy = ScriptedPolicy()
    reward_model = ScriptedReward(rewards_of([float(i % 5) for i in range(16)]))
    policy.script = after_ticks([index % 3 for index in range(16)], str)
    answer = ask(on_a_budget(16, price_per_candidate=price), policy, reward_model)
    assert policy.started == list(range(started))
    assert answer.reason is (SelectionReason.ADAPTIVE if started < 16 else SelectionReason.ARGMAX)
    assert statuses(answer) == ["scored"] * started + ["cancelled"] * (16 - started)
    assert answer.outcome is (Outcome.OK if started == 16 else Outcome.PARTIAL)


def test_an_adaptive_request_learns_from_earlier_ones() -> None:
    """All rewards are equal: alone that says nothing, but where rewards hardly differ it is enough."""
    started = []
    for spread in (Spread(), Spread(squares=0.1, degrees=100.0)):
        policy = ScriptedPolicy()

        async def run(policy: ScriptedPolicy = policy, spread: Spread = spread) -> Answer:
            stop: Stop = asyncio.get_running_loop().create_future()
            request = on_a_budget(9, price_per_candidate=0.1)
            return await best_of_n(request, policy, ScriptedReward(), stop, spread=spread)

        asyncio.run(run())
        started.append(len(policy.started))
    assert started == [9, 4]


def test_an_adaptive_request_that_fails_leaves_nothing_running() -> None:
    async def script(index: int) -> Completion:
        if index == 5:
            raise Unavailable("dead", 1)
        return says(str(index)) if index < 5 else await forever()

    answer = ask(on_a_budget(9, price_per_candidate=1e-9), ScriptedPolicy(script), ScriptedReward())
    assert isinstance(answer.error, Unavailable)


@pytest.mark.parametrize("stop_when", [None, DeadlinePassed("late")])
def test_the_lowest_prefixes_are_pruned(stop_when: RequestError | None) -> None:
    """Prefixes are the candidates' indices and their rewards; the highest half goes on."""

    async def script(index: int) -> Completion:
        return says("3") if index >= 2 and stop_when is None else await forever()

    policy, reward_model = ScriptedPolicy(script), ScriptedReward(rewards_of([0.0, 1.0, 2.0, 3.0]))
    request = on_a_budget(4, prune_fraction=0.5, prune_after_tokens=1)
    if stop_when is not None:
        answer = ask(request, policy, reward_model, wait_until(lambda: policy.running == 2, stop_when))
        assert statuses(answer) == ["pruned", "pruned", "cancelled", "cancelled"]
        return
    answer = ask(request, policy, reward_model)
    assert statuses(answer) == ["pruned", "pruned", "scored", "scored"]
    assert [candidate.finish_reason for candidate in answer.candidates[:2]] == [FinishReason.PRUNED] * 2
    assert [candidate.text for candidate in answer.candidates] == [PARTIAL, PARTIAL, "3", "3"]
    assert (answer.selected_index, answer.outcome) == (2, Outcome.PARTIAL)


def test_prefixes_without_a_finite_reward_are_not_pruned() -> None:
    async def script(index: int) -> Completion:
        return await forever() if index == 1 else says("3")

    async def waits(index: int) -> Completion:
        await asyncio.sleep(0.01)
        return await script(index)

    reward_model = ScriptedReward(rewards_of([math.nan, 1.0, 2.0, 3.0, 4.0]))
    answer = ask(on_a_budget(4, prune_fraction=0.5, prune_after_tokens=1), ScriptedPolicy(waits), reward_model)
    assert statuses(answer) == ["scored", "pruned", "scored", "scored"]


def test_an_adaptive_request_compares_later_prefixes_with_all_before() -> None:
    """Prefixes are the candidates' indices, whose rewards these are; the low ones end only by being pruned."""
    rewards = [5.0, 1.0, 4.0, 2.0, 0.0, 6.0, 0.5, 7.0]

    async def script(index: int) -> Completion:
        return says(str(index)) if rewards[index] >= 4 else await forever()

    async def later(index: int) -> Completion:
        await asyncio.sleep(0.01)
        return await script(index)

    request = on_a_budget(8, price_per_candidate=1e-9, prune_fraction=0.6, prune_after_tokens=1)
    policy = ScriptedPolicy(later)
    answer = ask(request, policy, ScriptedReward(rewards_of(rewards)))
    assert statuses(answer) == ["scored" if reward >= 4 else "pruned" for reward in rewards]
    assert (answer.selected_index, answer.reason) == (7, SelectionReason.ARGMAX)


def test_a_reward_model_that_fails_on_a_prefix_fails_the_request() -> None:
    async def fails(text: str) -> Score:
        raise RewardFailed("broken")

    policy = ScriptedPolicy(lambda index: forever())
    answer = ask(on_a_budget(2, prune_fraction=0.5, prune_after_tokens=1), policy, ScriptedReward(fails))
    assert isinstance(answer.error, RewardFailed)


def test_a_soft_choice_is_drawn_from_the_seed() -> None:
    request = replace(a_request(4), rule=SelectionRule.SOFT, selection_temperature=1e9)
    winners = set()
    for seed in range(40):
        answer = ask(replace(request, selection_seed=seed), ScriptedPolicy(), ScriptedReward())
        assert answer.reason is SelectionReason.SOFT
        winners.add(answer.selected_index)
    assert winners == {0, 1, 2, 3}
