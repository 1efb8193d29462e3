"""The algorithm, at its two Protocols: what is chosen, what is kept, what is told of times."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.core.best_of_n import Answer, Stop, best_of_n, overlap
from bon_server.core.errors import (
    DeadlinePassed,
    InternalError,
    NothingFinite,
    RequestError,
    RewardFailed,
    SamplingFailed,
    Unavailable,
)
from bon_server.core.types import (
    Candidate,
    CandidateStatus,
    Completion,
    FinishReason,
    Milestone,
    Outcome,
    Score,
    SelectionReason,
    SelectionRule,
)
from tests.asking import after_ticks, ask, rewards_of, statuses, wait_until
from tests.fakes import PARTIAL, ScriptedPolicy, ScriptedReward, a_request, named_after_index, says, scored
from tests.waiting import forever, until

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
    answer = ask(
        request, ScriptedPolicy(), reward_model, wait_until(lambda: len(ended) == 1, DeadlinePassed("passed")), ended
    )
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


def test_a_soft_choice_is_drawn_from_the_seed() -> None:
    request = replace(a_request(4), rule=SelectionRule.SOFT, selection_temperature=1e9)
    winners = set()
    for seed in range(40):
        answer = ask(replace(request, selection_seed=seed), ScriptedPolicy(), ScriptedReward())
        assert answer.reason is SelectionReason.SOFT
        winners.add(answer.selected_index)
    assert winners == {0, 1, 2, 3}
