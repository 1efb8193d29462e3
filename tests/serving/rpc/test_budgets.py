"""Answers with fewer candidates than asked for, and drawn ones: what the caller sees and what the log keeps."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.selection import soft
from bon_server.core.types import Budget, CandidateStatus, Completion, Outcome, Score, SelectionReason, SelectionRule
from tests.fakes import ScriptedPolicy, ScriptedReward, says, scored
from tests.serving.conftest import Run
from tests.waiting import until

ALL = pb.CANDIDATE_VIEW_ALL
PACED = "synthetic:tokens_per_s=400,tokens=60"


async def test_a_reward_that_is_high_enough_ends_the_sampling(run: Run) -> None:
    running = await run(settings={"policy.model": PACED})
    answer = await running.ask(request_id="a", n=16, budget=pb.Budget(stop_at_reward=0.0), view=pb.CANDIDATE_VIEW_ALL)
    assert answer.selection_reason == pb.SELECTION_REASON_THRESHOLD
    assert answer.best.reward >= 0
    assert answer.partial and answer.n_scored < 16
    assert not answer.HasField("kl"), "its distribution is not that of best-of-n"
    record = running.record("a")
    assert record.budget == Budget(stop_at_reward=0.0)
    assert (record.outcome, record.selection_reason) == (Outcome.PARTIAL, SelectionReason.THRESHOLD)
    stopped = [c for c in record.candidates if c.status is CandidateStatus.CANCELLED]
    assert len(stopped) == 16 - answer.n_scored
    again = await running.ask(request_id="a", n=16, budget=pb.Budget(stop_at_reward=0.0), view=pb.CANDIDATE_VIEW_ALL)
    assert again.replayed and again.candidates == answer.candidates
    await running.at_rest()


async def test_an_adaptive_number_of_candidates(run: Run) -> None:
    """Rewards are uniform over [-1, 1): one more can never gain 5, and is always expected to gain more than 1e-9."""
    running = await run()
    dear = await running.ask(request_id="dear", n=16, budget=pb.Budget(price_per_candidate=5.0, min_n=3))
    assert dear.selection_reason == pb.SELECTION_REASON_ADAPTIVE
    assert dear.n_scored == dear.n_generated == 4
    assert [c.status for c in running.record("dear").candidates].count(CandidateStatus.CANCELLED) == 12
    cheap = await running.ask(request_id="cheap", n=16, budget=pb.Budget(price_per_candidate=1e-9))
    assert (cheap.selection_reason, cheap.n_scored) == (pb.SELECTION_REASON_ARGMAX, 16)
    assert not cheap.HasField("kl"), "whether all were sampled depended on their rewards"
    await running.at_rest()


async def test_requests_share_the_places_of_the_policy(run: Run) -> None:
    """One alone takes all 16, another beside it half of them."""
    released = asyncio.Event()

    async def script(index: int) -> Completion:
        await released.wait()
        return says(str(index))

    policy = ScriptedPolicy(script, slots=16)
    running = await run(policy, ScriptedReward())
    free = pb.Budget(price_per_candidate=0.0)
    alone = asyncio.create_task(running.ask(request_id="alone", n=48, budget=free))
    await until(lambda: policy.running == 16)
    beside = asyncio.create_task(running.ask(request_id="beside", n=48, budget=free))
    await until(lambda: policy.running == 16 + 8)
    released.set()
    assert [(await asked).n_scored for asked in (alone, beside)] == [48, 48]
    await running.at_rest()


async def test_rewards_that_cannot_be_squared_cost_nobody_an_answer(run: Run) -> None:
    """Any finite number is a reward, and what is learned from it is learned after the commit."""

    async def huge(text: str) -> Score:
        return scored(1e200 if text.endswith("0") else -1e200)

    running = await run(ScriptedPolicy(), ScriptedReward(huge))
    assert (await running.ask(request_id="fixed", n=6)).best.reward == 1e200
    adaptive = await running.ask(request_id="adaptive", n=6, budget=pb.Budget(price_per_candidate=1.0))
    assert (adaptive.best.reward, adaptive.n_scored) == (1e200, 6)


async def test_the_lowest_prefixes_are_pruned_and_logged_as_such(run: Run) -> None:
    running = await run(settings={"policy.model": PACED})
    budget = pb.Budget(prune_fraction=0.5, prune_after_tokens=4)
    answer = await running.ask(request_id="a", n=12, budget=budget, view=pb.CANDIDATE_VIEW_ALL)
    pruned = [c for c in answer.candidates if c.status == pb.CANDIDATE_STATUS_PRUNED]
    assert 1 <= len(pruned) <= 6
    assert all(c.finish_reason == pb.FINISH_REASON_PRUNED and not c.HasField("reward") for c in pruned)
    assert all(c.completion_tokens >= 4 and c.text for c in pruned)
    assert answer.n_scored == 12 - len(pruned) == answer.n_generated
    assert answer.partial and not answer.HasField("kl")
    assert running.record("a").outcome is Outcome.PARTIAL
    await running.at_rest()


async def test_a_soft_choice_can_be_checked_from_the_log(run: Run) -> None:
    """Candidates and rewards are the same each time, so that only the seed of the choice decides: no chance is left."""
    running = await run()
    winners = set()
    for seed in range(20):
        selection = pb.Selection(rule=pb.SELECTION_RULE_SOFT, temperature=0.5, seed=seed)
        answer = await running.ask(
            request_id=f"r{seed}", n=6, selection=selection, sampling=pb.SamplingParams(seed=5), view=ALL
        )
        assert answer.selection_reason == pb.SELECTION_REASON_SOFT
        record = running.record(f"r{seed}")
        assert (record.rule, record.selection_temperature, record.selection_seed) == (SelectionRule.SOFT, 0.5, seed)
        rewards = [candidate.reward for candidate in record.candidates]
        assert record.selected_index == soft(rewards, 0.5, seed) == answer.best.index
        assert not answer.HasField("kl")
        winners.add(answer.best.index)
    assert len(winners) > 2


async def test_the_server_draws_and_logs_the_seed_of_a_soft_choice(run: Run) -> None:
    running = await run()
    selection = pb.Selection(rule=pb.SELECTION_RULE_SOFT, temperature=0.5)
    seeds = set()
    for name in "ab":
        answer = await running.ask(request_id=name, n=6, selection=selection)
        record = running.record(name)
        assert record.selection_seed is not None
        rewards = [candidate.reward for candidate in record.candidates]
        assert soft(rewards, 0.5, record.selection_seed) == answer.best.index
        seeds.add(record.selection_seed)
    assert len(seeds) == 2, "63 random bits"


@pytest.mark.parametrize("budget", [{"stop_at_reward": math.inf}, {"price_per_candidate": -1.0}])
async def test_bad_budgets_cost_nothing(run: Run, budget: dict[str, Any]) -> None:
    running = await run()
    with pytest.raises(Exception, match="budget"):
        await running.ask(n=4, budget=pb.Budget(**budget))
    await running.at_rest()
