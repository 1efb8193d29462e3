"""Requests that stop, adapt or prune by the rewards so far."""

from __future__ import annotations

import asyncio
import math

import pytest

from bon_server.core.best_of_n import Answer, Stop, best_of_n
from bon_server.core.errors import (
    DeadlinePassed,
    RequestError,
    RewardFailed,
    Unavailable,
)
from bon_server.core.stopping import RewardPrior
from bon_server.core.types import (
    Candidate,
    Completion,
    FinishReason,
    Outcome,
    Score,
    SelectionReason,
)
from bon_server.models.policy.synthetic import SyntheticPolicy
from bon_server.models.reward.synthetic import SyntheticReward
from tests.asking import after_ticks, ask, on_a_budget, rewards_of, statuses, wait_until
from tests.fakes import PARTIAL, ScriptedPolicy, ScriptedReward, says
from tests.waiting import forever, until


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
    for reward_prior in (RewardPrior(), RewardPrior(squares=0.1, degrees=100.0)):
        policy = ScriptedPolicy()

        async def run(policy: ScriptedPolicy = policy, reward_prior: RewardPrior = reward_prior) -> Answer:
            stop: Stop = asyncio.get_running_loop().create_future()
            request = on_a_budget(9, price_per_candidate=0.1)
            return await best_of_n(request, policy, ScriptedReward(), stop, reward_prior=reward_prior)

        asyncio.run(run())
        started.append(len(policy.started))
    assert started == [9, 4]


def test_an_adaptive_request_fills_its_wave_again() -> None:
    """Four equal rewards say nothing, so that a fifth is asked for alone; it tells, and four more run at once."""

    async def script(index: int) -> Completion:
        if index > 4:
            await until(lambda: len(policy.started) == 9)
        return says(str(index))

    policy = ScriptedPolicy(script)
    reward_model = ScriptedReward(rewards_of([1.0] * 4 + [0.0] * 5))
    answer = ask(on_a_budget(9, price_per_candidate=1e-9), policy, reward_model)
    assert statuses(answer) == ["scored"] * 9


async def test_a_wave_grows_when_there_are_more_places() -> None:
    """Four run at first; when one has ended there is room for nine, and so many run at the same time."""
    places = [4]

    async def script(index: int) -> Completion:
        if index == 0:
            await until(lambda: len(policy.started) == 4)
            places[0] = 9
        else:
            await until(lambda: len(policy.started) >= 10)
        return says(str(index))

    policy = ScriptedPolicy(script)
    stop: Stop = asyncio.get_running_loop().create_future()
    request = on_a_budget(27, price_per_candidate=0.0)
    answer = await best_of_n(request, policy, ScriptedReward(), stop, share=lambda: places[0])
    assert statuses(answer) == ["scored"] * 27


def test_an_adaptive_request_that_fails_leaves_nothing_running() -> None:
    async def script(index: int) -> Completion:
        if index == 5:
            raise Unavailable("dead", 1)
        return says(str(index)) if index < 5 else await forever()

    answer = ask(on_a_budget(9, price_per_candidate=1e-9), ScriptedPolicy(script), ScriptedReward())
    assert isinstance(answer.error, Unavailable)


async def at_once(n: int, **budget: float) -> Answer:
    """Of models that have samples and scores ready when they are asked."""
    policy, reward_model = SyntheticPolicy.from_spec("synthetic"), SyntheticReward.from_spec("synthetic")
    stop: Stop = asyncio.get_running_loop().create_future()
    return await best_of_n(on_a_budget(n, **budget), policy, reward_model, stop)


async def test_what_is_there_at_once_needs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "create_task", lambda made, **_: pytest.fail(f"a task: {made}"))
        answer = await at_once(16)
    assert statuses(answer) == ["scored"] * 16


async def test_what_ends_at_once_starts_the_next_without_growing_the_stack() -> None:
    answer = await at_once(2_000, price_per_candidate=0.0)
    assert (statuses(answer), answer.outcome) == (["scored"] * 2_000, Outcome.OK)


async def test_nothing_is_started_once_a_reward_is_high_enough() -> None:
    answer = await at_once(64, stop_at_reward=0.5)
    scored = statuses(answer).count("scored")
    assert answer.reason is SelectionReason.THRESHOLD
    assert answer.selected_index == scored - 1
    assert statuses(answer)[scored:] == ["cancelled"] * (64 - scored)


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
